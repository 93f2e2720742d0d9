import pytest
import torch

from vidrobust.attacks.arguments import at_least_one, drawn


def test_counts_below_one_are_named():
    at_least_one(steps=1, restarts=3)
    with pytest.raises(ValueError, match="steps=2, restarts=0: must be at least 1"):
        at_least_one(steps=2, restarts=0)


def test_draws_follow_the_generator_and_are_as_the_tensor_is():
    like = torch.empty(0, dtype=torch.float64)
    first, again = (drawn(torch.randn, (3, 2), like, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (3, 2) and first.dtype == torch.float64
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    assert torch.equal(drawn(torch.rand, (4,), torch.empty(1), None), expected)
