"""Measure accuracy under corruptions, on shifted data and without single cues."""
