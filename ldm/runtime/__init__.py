"""Files, ranks, signals and loggers: used by all rooms, and without knowledge of images or models."""
