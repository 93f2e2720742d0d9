"""Check FGSM, PGD and MIM: optima, budgets, restarts, and what they leave unchanged."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.attacks.helpers import seeded
from vidrobust.attacks import Misclassify, ThreatModel, contains, fgsm, make_ball, mim, pgd, rounded

SHAPES = [(5, 3, 1, 6, 5), (5, 3, 4, 6, 5), (5, 3, 6, 5)]


def _linear(shape):
    """Return a linear loss w.x, clips, and the closed-form maximum: x + eps sign(w), clamped."""
    w, x = torch.randn(shape[1:]), torch.rand(shape)
    return (lambda v: (v * w).flatten(1).sum(1)), x, lambda eps: (x + eps * w.sign()).clamp(0, 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [0.01, 0.4])
def test_fgsm_and_pgd_reach_the_optimum_of_a_linear_model(shape, eps):
    loss, x, best = _linear(shape)
    threat = ThreatModel("linf", eps)
    assert torch.allclose(fgsm(loss, x, threat), best(eps), atol=1e-6)
    assert torch.allclose(pgd(loss, x, threat, steps=10), best(eps), atol=1e-6)
    assert torch.allclose(pgd(loss, x, threat, steps=10, random_start=False), best(eps), atol=1e-6)


def _net(frames=2):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv3d(3, 8, (frames, 3, 3)),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(1),
        nn.Linear(128, 4),
    ).eval()


def _ce(net, y):
    return lambda v: F.cross_entropy(net(v), y, reduction="none")


@pytest.mark.parametrize("frames", [1, 2])
def test_pgd_obeys_the_budget_and_beats_fgsm_and_noise(frames):
    net, x, y = _net(frames), torch.rand(16, 3, frames, 6, 6), torch.randint(4, (16,))
    threat, loss = ThreatModel("linf", 0.1), _ce(net, y)
    adversarial = pgd(loss, x, threat, steps=20, random_start=False)
    assert contains(threat, x, adversarial).all()
    with torch.no_grad():
        assert loss(adversarial).mean() >= loss(fgsm(loss, x, threat)).mean() - 1e-5
        ball = make_ball(threat, x, lambda: x)
        assert loss(adversarial).mean() > loss(ball.apply(ball.random())).mean() > 0


def test_eps_0_returns_the_clips_unchanged():
    net, x, y = _net(), torch.rand(4, 3, 2, 6, 6), torch.randint(4, (4,))
    for attack in (fgsm, pgd, mim):
        assert torch.equal(attack(_ce(net, y), x, ThreatModel("linf", 0.0)), x)


def test_restarts_and_steps_keep_the_best_of_each_sample():
    """It must not keep the last restart, which may be worse."""
    net, x, y = _net(), torch.rand(12, 3, 2, 6, 6), torch.randint(4, (12,))
    threat, loss = ThreatModel("linf", 0.05), _ce(net, y)
    # the loss of each sample never falls with more restarts
    reached = torch.full((12,), -torch.inf)
    for restarts in (1, 2, 5):
        generator = torch.Generator().manual_seed(0)  # the first restarts are the same
        with torch.no_grad():
            value = loss(pgd(loss, x, threat, steps=3, restarts=restarts, generator=generator))
        assert (value >= reached - 1e-6).all()
        reached = value
    # a huge step overshoots, so the last iterate is worse than an earlier one
    values = []

    def spy(v):
        value = loss(v)
        values.append(value.detach())
        return value

    with torch.no_grad():
        best = loss(pgd(spy, x, threat, steps=6, step_size=1.0, restarts=2))
    assert torch.allclose(best, torch.stack(values).amax(0), atol=1e-5)
    assert (torch.stack(values)[-1] < best - 1e-4).any()


def test_the_random_start_follows_the_generator():
    net, x, y = _net(), torch.rand(4, 3, 2, 6, 6), torch.randint(4, (4,))

    def run(seed):
        return pgd(
            _ce(net, y), x, ThreatModel(), steps=2, generator=torch.Generator().manual_seed(seed)
        )

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_model_is_bitwise_identical_after_an_attack(mode):
    """Flags, gradients, modes and the statistics of norms in eval mode stay."""
    net = _net()
    # a mix of flags, gradients and modes, all of which must stay
    net[0].weight.requires_grad_(False)
    net[5].weight.grad = torch.ones_like(net[5].weight)
    net.train(mode == "train")
    net[1].eval()
    before = copy.deepcopy(net)
    grads = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    x = torch.rand(4, 3, 2, 6, 6)
    pgd(_ce(net, torch.zeros(4, dtype=torch.long)), x, ThreatModel(), steps=3)
    assert all(
        torch.equal(a, b)
        for a, b in zip(net.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in net.parameters()] == [
        p.requires_grad for p in before.parameters()
    ]
    for p, grad in zip(net.parameters(), grads, strict=True):
        assert (p.grad is None) == (grad is None) and (grad is None or torch.equal(p.grad, grad))
    assert not x.requires_grad


def test_no_parameter_gradient_is_computed():
    layer = nn.Linear(12, 3)
    calls = []
    # the hook runs if a gradient of the weight is computed
    layer.weight.register_hook(lambda g: calls.append("weight"))
    pgd(lambda v: layer(v.flatten(1)).sum(1), torch.rand(2, 3, 1, 2, 2), ThreatModel(), steps=2)
    assert calls == []


def test_pgd_works_under_no_grad_and_bf16_autocast():
    net, x, y = _net(), torch.rand(4, 3, 2, 6, 6), torch.randint(4, (4,))
    threat = ThreatModel("linf", 0.1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = pgd(_ce(net, y), x, threat, steps=5)
    assert out.dtype == torch.float32 and contains(threat, x, out).all()
    assert _ce(net, y)(out).mean() > _ce(net, y)(x).mean()


def test_wrong_ranges_losses_and_steps_are_refused():
    x = torch.rand(2, 3, 1, 4, 4)
    threat = ThreatModel()
    with pytest.raises(ValueError, match="attack before normalisation|divide by 255"):
        fgsm(lambda v: v.flatten(1).sum(1), x * 255, threat)
    with pytest.raises(ValueError, match=r"one number per sample, \(B,\); got \(\)"):
        pgd(lambda v: v.sum(), x, threat)
    with pytest.raises(ValueError, match=r"gradient of samples \[1\] is NaN"):
        pgd(lambda v: v.flatten(1).sum(1) * torch.tensor([1.0, float("nan")]), x, threat)
    with pytest.raises(ValueError, match="steps=0"):
        pgd(lambda v: v.flatten(1).sum(1), x, threat, steps=0)


def test_a_broken_sample_costs_no_further_passes():
    """The model does not receive a sample again once it is wrong."""
    net, x = _net(), torch.rand(12, 3, 2, 6, 6)
    y, sizes = net(x).argmax(1), []

    def counted(v):
        sizes.append(len(v))
        return net(v)

    x_adv = pgd(Misclassify(counted, y), x, ThreatModel("linf", 0.1), steps=20, restarts=3)
    wrong = net(x_adv).argmax(1) != y
    # batches only shrink, to the samples that are still right
    assert wrong.any() and sizes == sorted(sizes, reverse=True) and sizes[0] == 12
    assert sizes[-1] == int((~wrong).sum()) or wrong.all()
    assert sum(sizes) < 0.6 * 12 * 63


def test_a_wrong_iterate_beats_a_right_one_of_higher_loss():
    """Cross-entropy may be higher for a right prediction than for a narrowly wrong one."""
    inputs = []

    def predict(v):
        inputs.append(v)
        step = len(inputs)
        logits = torch.tensor([[1.0, 1.1, -5.0]] if step == 1 else [[1.0, 0.9, 0.9]])
        return logits + 0 * v.sum()

    x = torch.full((1, 3, 1, 2, 2), 0.5)
    with pytest.MonkeyPatch.context():
        x_adv = pgd(
            Misclassify(predict, torch.tensor([0]), clean=x), x, ThreatModel("linf", 0.1), steps=3
        )
    assert torch.equal(
        x_adv, inputs[0].detach()
    )  # the first, wrong, though later ones have the higher cross-entropy


def test_rounding_goes_on_until_the_rounded_clip_is_wrong():
    """A change of 0.4/255 crosses the boundary here, and rounding undoes it."""
    x = torch.full((1, 3, 1, 2, 2), 100 / 255)

    def predict(v):
        score = 2550 * (v.flatten(1).mean(1) - 100.3 / 255)
        return torch.stack([-score, score], 1)

    y = torch.tensor([0])
    small, large = ThreatModel("linf", 0.4 / 255), ThreatModel("linf", 1 / 255)
    # 0.4/255 is rounded away, 1/255 is not
    for threat, survives in ((small, False), (large, True)):
        x_adv = pgd(Misclassify(predict, y, clean=x), x, threat, steps=8, random_start=False)
        assert predict(x_adv).argmax(1).item() == 1
        assert (predict(rounded(x_adv, x)).argmax(1).item() == 1) is survives


def test_the_best_place_is_kept_over_restarts():
    """With random patches, a later restart at a worse place must not replace a better result."""
    net, y = _net(), torch.randint(4, (12,))
    x, threat, loss = (
        torch.rand(12, 3, 2, 6, 6),
        ThreatModel("linf", 0.5, "patch", 2, "random"),
        _ce(net, y),
    )
    reached = torch.full((12,), -torch.inf)
    for restarts in (1, 3, 6):
        generator = torch.Generator().manual_seed(0)
        x_adv = pgd(loss, x, threat, steps=3, restarts=restarts, generator=generator)
        assert contains(threat, x, x_adv).all() and (loss(x_adv) >= reached - 1e-6).all()
        reached = loss(x_adv)


def test_three_frames_are_not_treated_as_channels():
    """With T = 3, a loss of one channel, or of one frame, moves only that channel or frame."""
    x = torch.full((2, 3, 3, 4, 4), 0.5)
    # one of three channels
    of_channel = pgd(lambda v: v[:, 1].flatten(1).sum(1), x, ThreatModel(), random_start=False) - x
    assert (of_channel[:, 1] > 0).all() and (of_channel[:, [0, 2]] == 0).all()
    # one of three frames
    of_frame = pgd(lambda v: v[:, :, 1].flatten(1).sum(1), x, ThreatModel(), random_start=False) - x
    assert (of_frame[:, :, 1] > 0).all() and (of_frame[:, :, [0, 2]] == 0).all()


def test_momentum_carries_over_a_plateau():
    def loss(v):
        rise = (v - 0.5).clamp(max=0.01) + 0.5 * (v - 0.55).clamp(
            min=0
        )  # flat between 0.51 and 0.55
        return rise.flatten(1).sum(1)

    x, threat = torch.full((1, 3, 1, 2, 2), 0.5), ThreatModel("linf", 0.1)
    stuck = pgd(loss, x, threat, steps=10, step_size=0.015, random_start=False)
    carried = mim(loss, x, threat, steps=10, step_size=0.015)
    assert loss(carried) > loss(stuck) + 0.1


def test_the_last_iterate_starts_at_the_clip_or_at_a_random_point():
    """With a linear loss, all pixels change equally from the clip, but not from a random point."""
    x, w = torch.full((2, 3, 2, 4, 4), 0.5), torch.randn(3, 2, 4, 4, generator=seeded())
    loss, threat = (lambda v: (v * w).flatten(1).sum(1)), ThreatModel("linf", 0.1)
    options = {"steps": 2, "step_size": 0.01, "best": False}
    still = pgd(loss, x, threat, random_start=False, **options)
    assert torch.allclose(still - x, 0.02 * w.sign().expand_as(x), atol=1e-6)
    moved = (pgd(loss, x, threat, generator=seeded(), **options) - x).abs()
    assert moved.std() > 0.01 and moved.max() <= 0.1 + 1e-6


@pytest.mark.parametrize(("best", "backward"), [(True, 1 + 2), (False, 2 + 2)])
def test_the_last_iterate_makes_the_same_passes_whatever_the_clips_are(best, backward):
    """A place chosen by a gradient other than 0 costs one pass, and with best=False always two."""
    passes = []

    def loss(v):
        if v.requires_grad:
            v.register_hook(lambda gradient: passes.append(1))
        return (v * torch.arange(4.0)).flatten(1).sum(1)

    x = torch.full((2, 3, 4, 4, 4), 0.5)
    pgd(loss, x, ThreatModel("linf", 0.1, "frames", 1), steps=2, best=best, random_start=False)
    assert len(passes) == backward
