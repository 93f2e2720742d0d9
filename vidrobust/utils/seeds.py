"""Seed torch's global generator."""

import os

import torch


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed torch's global generator (weights, dropout); deterministic: documented flags for exact
    GPU runs.
    """
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    elif torch.cuda.is_available():
        torch.backends.cudnn.benchmark = (
            True  # clips have one size: the fastest kernels are worth finding
        )
