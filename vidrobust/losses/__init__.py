"""Losses on similarities and features. Each takes tensors and returns one value per sample."""
