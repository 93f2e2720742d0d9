"""Copies of a data set: resized, corrupted, or texture twins."""
