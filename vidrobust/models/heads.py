"""Heads on a backbone."""

from torch import nn


def projector(dim: int, hidden: int, out: int) -> nn.Sequential:
    """(N, dim) -> (N, out): the two-layer MLP of SimCLR and of CLAE (METHODS section 2.2), not normalised."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out))


def linear(dim: int, classes: int) -> nn.Linear:
    """(N, dim) -> (N, classes) logits."""
    return nn.Linear(dim, classes)
