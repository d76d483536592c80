"""`ldm COMMAND`: each parses its options once, then calls the rooms below."""
