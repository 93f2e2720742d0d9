"""What happens to videos without an adversary. Usable alone: nothing here imports the rest of the package."""

from vidrobust.corruptions.codec import h264

__all__ = ["h264"]
