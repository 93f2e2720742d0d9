"""What tests of methods share."""

import pytest
import torch


@pytest.fixture
def exact():
    """Networks and losses in double precision, where two ways to one formula agree.

    In single, a signed attack may move a pixel whose gradient is 0 but for rounding up on the one way, down on the
    other, and a small network with fresh norms makes much of it.
    """
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
