"""Measure features: kNN, linear probe, geometry, sensitivity."""
