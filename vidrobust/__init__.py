"""Contrastive robustness for video."""

import os

# Before torch loads OpenMP: threads that wait by spinning take the cores from the loader's workers.
# With sleeping ones
# a step of the demo on two cores takes a quarter less time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
