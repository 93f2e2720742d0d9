"""Losses on similarities and features: each takes tensors and returns one value per sample."""
