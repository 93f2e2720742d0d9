"""Random numbers: streams from the seed of a run, and torch's global generator."""

import os
from enum import IntEnum

import torch


class SeedStream(IntEnum):
    """Independent streams of random numbers from the seed of a run, one per purpose.

    A generator is `numpy.random.default_rng([seed, stream, *numbers])`, where the numbers say what
    it is for, such as (epoch, index), so that it does not depend on the order of calls.
    """

    SAMPLE = 0  # (epoch, index): frames and augmentation of a video
    ORDER = 1  # (epoch): order of the videos
    REPLACEMENT = 2  # (epoch, index): which video takes the place of a bad one
    NEGATIVE = 3  # (epoch, index): non-semantic negatives
    # (index, name, severity): corruptions of an evaluation. It shares its number with NEGATIVE: the
    # rows of earlier evaluations depend on it, and generators of more numbers are other ones.
    CORRUPTION = 3
    PARTNER = 4  # (index): partner of a video with swapped cues
    CUE = 5  # (index, clip): views without a cue
    MEASURED = 6  # (step, batch): random starts of the attacks that training measures accuracy by


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
