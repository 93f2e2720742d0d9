"""Seed torch's global random-number generator."""

import os

import torch


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed torch's global generator, which weights and dropout use.

    Args:
        seed: the seed.
        deterministic: also set the flags that torch documents for reproducible GPU runs.
    """
    torch.manual_seed(seed)
    if deterministic:
        # cuBLAS requires a fixed workspace for reproducible results
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    elif torch.cuda.is_available():
        # all clips have the same size, so searching for the fastest kernels pays off
        torch.backends.cudnn.benchmark = True
