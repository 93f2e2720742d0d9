import pytest
import torch
from torch import nn

from vidrobust.evaluation import MicroBatches
from vidrobust.utils.errors import UserError


def _net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(3, 4, 3, padding=1), nn.Tanh(), nn.Flatten(1), nn.Linear(4 * 2 * 25, 3)
    )


class Small:
    """A model on a machine whose memory holds `holds` clips, and fewer with their gradient."""

    def __init__(self, net, holds, backward=None):
        self.net = net
        self.holds = holds
        self.backward = backward or holds
        self.sizes = []

    def __call__(self, x):
        if len(x) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(len(x))
        out = self.net(x)
        if out.requires_grad:
            out.register_hook(self._hook(len(x)))
        return out

    def _hook(self, clips):
        def refuse(gradient):
            if clips > self.backward:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

        return refuse


@pytest.mark.parametrize(
    ("size", "holds", "backward"), [(16, 16, 16), (3, 16, 16), (16, 5, 5), (16, 16, 4), (1, 1, 1)]
)
def test_outputs_and_gradients_are_those_of_the_whole_batch(size, holds, backward):
    net = _net()
    x = torch.rand(11, 3, 2, 5, 5)
    bounded = MicroBatches(Small(net, holds, backward), size)
    with torch.no_grad():
        assert torch.allclose(bounded(x), net(x), atol=1e-6)
    leaf, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    bounded(leaf).square().sum().backward()
    net(plain).square().sum().backward()
    assert torch.allclose(leaf.grad, plain.grad, atol=1e-6)
    assert bounded.size <= max(holds, 1) and bounded.size <= size


def test_a_batch_that_fits_goes_through_once():
    model = Small(_net(), 100)
    x = torch.rand(6, 3, 2, 5, 5, requires_grad=True)
    MicroBatches(model, 8)(x).sum().backward()
    assert model.sizes == [6]
    model.sizes.clear()
    MicroBatches(model, 4)(x).sum().backward()
    assert model.sizes == [4, 2, 4, 2]  # without a graph, then chunk by chunk with one


def test_one_clip_too_many_is_told_and_other_errors_pass():
    with pytest.raises(
        UserError, match=r"memory does not hold one clip.*lower data.frames or data.size"
    ):
        MicroBatches(Small(_net(), 0), 4)(torch.rand(2, 3, 2, 5, 5))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        MicroBatches(_net(), 4)(torch.rand(2, 3, 2, 6, 5, requires_grad=True))


def test_the_size_is_halved_and_no_more():
    bounded = MicroBatches(Small(_net(), 5), 16)
    with torch.no_grad():
        bounded(torch.rand(16, 3, 2, 5, 5))
    assert bounded.size == 4
