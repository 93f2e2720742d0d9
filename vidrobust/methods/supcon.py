"""SupCon (Khosla et al. 2020): all views of a class are positives of each other, the comparator of paper A."""

from torch import Tensor

from vidrobust.methods.simclr import SimCLR


class SupCon(SimCLR):
    """SimCLR with positives by label; the mean over positives is outside of the logarithm (L_out).

    A label that is seen once in a batch still has the other views of its video.
    """

    def _keys(self, ids: Tensor, labels: Tensor) -> Tensor:
        return labels
