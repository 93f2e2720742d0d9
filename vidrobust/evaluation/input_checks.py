"""Check indices, batch sizes and logits for all evaluations."""

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from vidrobust.attacks import checked_output, require_logits
from vidrobust.attacks.arguments import at_least_one
from vidrobust.utils.errors import UserError


def require_work(indices: Sequence[int], videos: int, batch_size: int) -> None:
    """Raise UserError for a batch size below 1, and for indices out of range or listed twice.

    Args:
        indices: indices of the videos to measure.
        videos: number of videos of the list.
        batch_size: clips at a time.
    """
    try:
        at_least_one(batch_size=batch_size)
    except ValueError as error:
        raise UserError(str(error)) from None
    absent = [index for index in indices if not 0 <= index < videos]
    if absent:
        raise UserError(
            f"indices: {absent[0]} is no video of the list, which has 0 to {videos - 1}"
        )
    if len(set(indices)) < len(indices):
        twice, _ = Counter(indices).most_common(1)[0]
        raise UserError(f"indices: {twice} stands twice; name each video once")


def logits_of(output: object, samples: int) -> Tensor:
    """Return the (B, K) float32 logits that a model returned.

    Raises UserError for anything else, such as probabilities: their mean over the clips of a video
    may choose another class than the mean of logits.
    """
    try:
        logits = checked_output(output, samples)
        # outputs of 0 and 1 alone are votes of a classifier without scores, and are accepted
        if not ((logits == 0) | (logits == 1)).all():
            require_logits(logits)
    except ValueError as error:
        raise UserError(str(error)) from None
    return logits.float()
