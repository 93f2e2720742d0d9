"""Tiny training runs."""

import torch

from tests.helpers import REPO, tiny
from tests.processes import TWO_RANKS, run
from vidrobust import checkpoint, config
from vidrobust.training.loop import train


def tiny_config(ucf, *words):
    """Return the TINY configuration on a data set, with options."""
    return config.loads("", tiny(f"data.root={ucf}", *words))


def train_state(cfg, out, resume=None):
    """Train and return the state of the last checkpoint."""
    out.mkdir(exist_ok=True)
    return checkpoint.read_checkpoint(train(cfg, out, resume))


def two_ranks(folder, *words):
    """Train in `folder` on two ranks, and return the state of the last checkpoint."""
    (folder / "page.yaml").write_text("")
    command = [*TWO_RANKS, REPO / "tools/train_net.py", "--cfg", "page.yaml", "--output-dir", "out"]
    done = run([*command, *tiny("eval.enabled=false", "device=cpu", *words)], cwd=folder)
    assert done.returncode == 0, done.stderr
    return checkpoint.read_checkpoint(folder / "out")


def equal(a, b):
    """Return whether two nested states are bitwise equal."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b
