import copy

import pytest
import torch
from torch import nn

from vidrobust.models import add_branches, build_backbone, single_branch_state, use_branch
from vidrobust.models.branch_norm import BranchNorm

SMALL = {"r2plus1d_10": {"width": 4}, "resnet18": {"width": 4, "stem": "cifar"}, "slowfast_r50": {}}


def _small(name="r2plus1d_10"):
    return build_backbone(name, **SMALL[name])


@pytest.mark.parametrize("name", SMALL)
def test_every_norm_including_shortcuts_is_converted(name):
    plain = _small(name)
    count = sum(isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d) for m in plain.modules())
    model = add_branches(copy.deepcopy(plain))
    branched = [m for m in model.modules() if isinstance(m, BranchNorm)]
    assert len(branched) == count
    assert sum(isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d) for m in model.modules()) == 2 * count
    assert all(b.branches["adv"].momentum == 0.01 for b in branched)
    x = torch.rand(2, 3, 2, 32, 32)
    with torch.no_grad():
        expected = plain.eval()(x)
        for branch in ("clean", "adv"):
            with use_branch(model.eval(), branch):
                assert torch.equal(model(x), expected)


def test_a_forward_pass_updates_only_the_statistics_of_its_branch():
    model = add_branches(_small()).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with use_branch(model, "adv"):
        model(torch.rand(4, 3, 2, 32, 32))
    after = model.state_dict()
    moved = {k for k in after if not torch.equal(after[k], before[k])}
    assert moved and all(".branches.adv." in k for k in moved)


def test_contexts_restore_the_branch_when_nested_and_after_an_error():
    model = add_branches(_small())
    norm = next(m for m in model.modules() if isinstance(m, BranchNorm))
    with pytest.raises(RuntimeError), use_branch(model, "adv"):
        with use_branch(model, "clean"):
            assert norm.branch == "clean"
        assert norm.branch == "adv"
        raise RuntimeError
    assert norm.branch == "clean"


def test_unknown_branches_are_refused():
    model = _small()
    with use_branch(model, "clean"):
        pass
    with pytest.raises(ValueError, match="no norm branch 'adv'"), use_branch(model, "adv"):
        pass
    with (
        pytest.raises(ValueError, match="it has clean, adv"),
        use_branch(add_branches(model), "other"),
    ):
        pass


def test_state_of_plain_norms_loads_and_is_saved():
    plain = _small().train()
    plain(torch.rand(4, 3, 2, 32, 32))
    model = add_branches(_small())
    model.load_state_dict(plain.state_dict())  # strict: nothing missing, nothing unexpected
    for branch in ("clean", "adv"):
        state = single_branch_state(model, branch)
        assert state.keys() == plain.state_dict().keys()
        assert all(torch.equal(v, state[k]) for k, v in plain.state_dict().items())
    with use_branch(model.train(), "adv"):
        model(torch.rand(4, 3, 2, 32, 32))
    fresh = _small()
    fresh.load_state_dict(single_branch_state(model, "adv"))
    x = torch.rand(2, 3, 2, 32, 32)
    with torch.no_grad(), use_branch(model.eval(), "adv"):
        assert torch.equal(fresh.eval()(x), model(x))


def test_branched_state_round_trips_and_converting_twice_changes_nothing():
    model = add_branches(_small()).train()
    with use_branch(model, "adv"):
        model(torch.rand(4, 3, 2, 32, 32))
    other = add_branches(add_branches(_small()))
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("kind", ["average", "select"])
def test_average_and_select_mix_the_features_of_all_branches(kind):
    """Compare features and input gradients with a mean weighted equally or by the selector."""
    model = add_branches(_small(), ("adv", "adv2")).eval()
    model.selector = nn.Linear(model.dim, 3)
    for name in ("adv", "adv2"):
        with use_branch(model.train(), name):
            model(torch.rand(4, 3, 2, 32, 32))
    model.eval()
    x = torch.rand(2, 3, 2, 32, 32, requires_grad=True)
    each = []
    for name in ("clean", "adv", "adv2"):
        with use_branch(model, name):
            each.append(model(x))
    weights = torch.full((2, 3), 1 / 3) if kind == "average" else model.selector(each[0]).softmax(1)
    expected = sum(weights[:, i, None] * each[i] for i in range(3))
    with use_branch(model, kind):
        mixture = model(x)
        with use_branch(model, "adv"):
            assert torch.equal(model(x), each[1]), "a nested context of one branch"
        assert torch.equal(model(x), mixture)
    assert torch.allclose(mixture, expected, atol=1e-5) and torch.equal(model(x), each[0])
    (ours,), (theirs,) = (
        torch.autograd.grad(f.sum(), x, retain_graph=True) for f in (mixture, expected)
    )
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_select_needs_a_selector_and_average_needs_a_backbone():
    model = add_branches(_small())
    with pytest.raises(ValueError, match="trained without a selector"), use_branch(model, "select"):
        pass
    with (
        pytest.raises(ValueError, match="no norm branch 'average'"),
        use_branch(model.trunk, "average"),
    ):
        pass
