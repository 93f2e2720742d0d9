import contextlib
import copy

import pytest
import torch
from torch import nn

from tests.methods.helpers import cosine
from vidrobust.config import Config, ModelConfig
from vidrobust.methods import BYOL, MomentumEncoder, build_method
from vidrobust.models import normed_mlp
from vidrobust.utils.errors import UserError

TINY = ModelConfig(backbone="r2plus1d_10", width=4, hidden=8, dim=8)


def built(name: str, **options) -> BYOL:
    cfg = Config(model=TINY)
    cfg.method.name = name
    for key, value in options.items():
        setattr(cfg.method, key, value)
    method = build_method(cfg, 3)
    assert isinstance(method, BYOL)
    return method


@pytest.fixture(params=[(1, 2), (3, 2), (1, 3)], ids=["T=1", "T=3", "three clips"])
def batch(request):
    frames, views = request.param
    return (
        torch.rand(4, views, 3, frames, 16, 16),
        torch.arange(4),
        torch.zeros(4, dtype=torch.long),
    )


@pytest.mark.parametrize("name", ["byol", "simsiam"])
def test_each_view_predicts_the_others(batch, name):
    views, ids, labels = batch
    count = views.shape[1]
    method = built(name, clips_per_video=count, momentum=0.5)
    twin = copy.deepcopy(method)
    if twin.target is not None:
        with torch.no_grad():
            for p in twin.model.parameters():
                p += 0.1
            method.model.load_state_dict(twin.model.state_dict())
        twin.target.follow(twin.model, 0.0)
    loss = method(views, ids, labels)["loss"]
    z = [twin.model(views[:, v]) for v in range(count)]
    targets = z if twin.target is None else [twin.target.model(views[:, v]) for v in range(count)]
    predicted = [twin.predictor(each) for each in z]
    for i in range(4):
        pairs = [(v, w) for v in range(count) for w in range(count) if v != w]
        near = sum(cosine(predicted[v][i], targets[w][i]) for v, w in pairs) / len(pairs)
        expected = -near if twin.target is None else 2 * (2 - 2 * near)
        assert loss[i].item() == pytest.approx(expected, abs=1e-4)


def test_the_gradient_stops_at_the_target(batch):
    views, ids, labels = batch
    for name in ("byol", "simsiam"):
        method = built(name, clips_per_video=views.shape[1])
        method(views, ids, labels)["loss"].mean().backward()
        assert all(
            p.grad is not None for p in [*method.model.parameters(), *method.predictor.parameters()]
        )
        if method.target is not None:
            assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())


def test_simsiam_without_its_stop_would_move_otherwise(batch):
    """The gradient is that of predictions towards constants."""
    views, ids, labels = batch
    method = built("simsiam", clips_per_video=views.shape[1]).eval()
    targets = [method.model(views[:, v]).detach() for v in range(views.shape[1])]
    constant = BYOL(
        copy.deepcopy(method.model), copy.deepcopy(method.predictor), clips=views.shape[1]
    ).eval()
    constant.target = Constants(targets, views)
    for each in (method, constant):
        each(views, ids, labels)["loss"].mean().backward()
    for a, b in zip(method.model.parameters(), constant.model.parameters(), strict=True):
        # BYOL's scale, of the sum of both directions' 2 - 2 cos, is four times SimSiam's
        assert torch.allclose(4 * a.grad, b.grad, atol=1e-6)


class Constants(nn.Module):
    def __init__(self, targets, views):
        super().__init__()
        self.targets = targets
        self.inputs = views
        self.model = nn.Module()
        self.model.use_branch = lambda branch: contextlib.nullcontext()

    def forward(self, x):
        return next(t for v, t in enumerate(self.targets) if torch.equal(self.inputs[:, v], x))


def test_heads_are_the_papers():
    norms = lambda head: [m for m in head if isinstance(m, nn.BatchNorm1d)]  # noqa: E731
    three = built("simsiam").model.head
    assert len(norms(three)) == 3 and not three[-1].affine and three[-2].bias is None
    assert len(norms(built("byol").model.head)) == 1 and isinstance(
        built("byol").target, MomentumEncoder
    )
    assert normed_mlp(4, 5, 6)(torch.randn(3, 4)).shape == (3, 6)


@pytest.mark.parametrize("name", ["byol", "simsiam"])
def test_there_are_no_negatives_to_look_through(name):
    cfg = Config(model=TINY)
    cfg.method.name, cfg.method.false_negatives.rule = name, "fixed"
    with pytest.raises(
        UserError, match=f"method.false_negatives.rule=fixed: {name} has no negatives"
    ):
        build_method(cfg, 3)
