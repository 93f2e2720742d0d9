"""vidrobust: contrastive robustness, video first."""

# torch before anything that may load decord: the other order crashes in native code (DESIGN section 9).
import torch  # noqa: F401

__version__ = "0.1.0"
