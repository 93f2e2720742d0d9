"""What every method has."""

from torch import nn

from vidrobust.models import Model


class Method(nn.Module):
    """`method(views, ids, labels) -> {"loss": (B,), ...}` around the model that it trains.

    views (B, `views`, C, T, H, W) in [0, 1], ids (B,) one a video, labels (B,). Losses are per video: the caller
    reduces. Entries other than "loss" are its parts, for the log.
    """

    views: int  # clips drawn from each video
    model: Model
