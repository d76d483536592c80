"""Losses of stage 1."""
