"""Files, ranks, signals, loggers: what every room may stand on, and nothing of images or models."""
