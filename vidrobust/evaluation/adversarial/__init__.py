"""Measure accuracy under attack."""
