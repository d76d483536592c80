"""The networks; torch only. They know nothing of paths, losses or data."""
