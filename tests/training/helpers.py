"""Tiny training runs."""

import torch

from tests.helpers import tiny
from vidrobust import checkpoint, config
from vidrobust.training.loop import train


def tiny_config(ucf, *words):
    """Return the TINY configuration on a data set, with options."""
    return config.loads("", tiny(f"data.root={ucf}", *words))


def train_state(cfg, out, resume=None):
    """Train and return the state of the last checkpoint."""
    out.mkdir(exist_ok=True)
    return checkpoint.read_checkpoint(train(cfg, out, resume))


def equal(a, b):
    """Return whether two nested states are bitwise equal."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b
