"""Contrastive robustness for video."""

import os
from typing import Any

# Before torch loads OpenMP: threads that wait by spinning take the cores from the loader's workers.
# With sleeping ones
# a step of the demo on two cores takes a quarter less time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_API = ("evaluate", "load_model", "wrap")


def __getattr__(name: str) -> Any:
    """Import the interface for Python when it is first used, because torch takes seconds."""
    if name in _API:
        from vidrobust import api

        return getattr(api, name)
    raise AttributeError(f"module 'vidrobust' has no attribute {name!r}")
