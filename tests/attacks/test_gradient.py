import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vidrobust.attacks import ThreatModel, contains, fgsm, pgd

SHAPES = [(5, 3, 1, 6, 5), (5, 3, 4, 6, 5), (5, 3, 6, 5)]


def _linear(shape):
    """A linear loss w.x and its closed-form maximum in the budget: x + eps sign(w), clamped."""
    w, x = torch.randn(shape[1:]), torch.rand(shape)
    return (lambda v: (v * w).flatten(1).sum(1)), x, lambda eps: (x + eps * w.sign()).clamp(0, 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [0.01, 0.4])
def test_both_reach_the_optimum_of_a_linear_model(shape, eps):
    loss, x, best = _linear(shape)
    threat = ThreatModel("linf", eps)
    assert torch.allclose(fgsm(loss, x, threat), best(eps), atol=1e-6)
    assert torch.allclose(pgd(loss, x, threat, steps=10), best(eps), atol=1e-6)
    assert torch.allclose(pgd(loss, x, threat, steps=10, random_start=False), best(eps), atol=1e-6)


def _net(frames=2):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv3d(3, 8, (frames, 3, 3)), nn.BatchNorm3d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(1), nn.Linear(128, 4)
    ).eval()  # fmt: skip


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
        assert loss(adversarial).mean() > loss(threat.random_start(x)).mean() > 0


def test_eps_0_is_the_identity():
    net, x, y = _net(), torch.rand(4, 3, 2, 6, 6), torch.randint(4, (4,))
    for attack in (fgsm, pgd):
        assert torch.equal(attack(_ce(net, y), x, ThreatModel("linf", 0.0)), x)


def test_restarts_and_steps_keep_the_best_of_each_sample():
    """Also when a later restart is worse: the silent bug of keeping the last one."""
    net, x, y = _net(), torch.rand(12, 3, 2, 6, 6), torch.randint(4, (12,))
    threat, loss = ThreatModel("linf", 0.05), _ce(net, y)
    reached = torch.full((12,), -torch.inf)
    for restarts in (1, 2, 5):
        generator = torch.Generator().manual_seed(0)  # the first restarts are the same
        with torch.no_grad():
            value = loss(pgd(loss, x, threat, steps=3, restarts=restarts, generator=generator))
        assert (value >= reached - 1e-6).all()
        reached = value
    # a huge step overshoots, so that the last iterate is worse than an earlier one
    seen = []

    def spy(v):
        value = loss(v)
        seen.append(value.detach())
        return value

    with torch.no_grad():
        best = loss(pgd(spy, x, threat, steps=6, step_size=1.0, restarts=2))
    assert torch.allclose(best, torch.stack(seen).amax(0), atol=1e-5)
    assert (torch.stack(seen)[-1] < best - 1e-4).any()


def test_the_random_start_follows_the_generator():
    net, x, y = _net(), torch.rand(4, 3, 2, 6, 6), torch.randint(4, (4,))

    def run(seed):
        return pgd(_ce(net, y), x, ThreatModel(), steps=2, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_model_is_bit_identical_after_an_attack(mode):
    """Flags, gradients and norm statistics; the mode is the caller's (train moves the statistics, not the attack)."""
    net = _net()
    net[0].weight.requires_grad_(False)
    net[5].weight.grad = torch.ones_like(net[5].weight)
    net.train(mode == "train")
    net[1].eval()
    before = copy.deepcopy(net)
    grads = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    x = torch.rand(4, 3, 2, 6, 6)
    pgd(_ce(net, torch.zeros(4, dtype=torch.long)), x, ThreatModel(), steps=3)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.state_dict().values(), strict=True))
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in before.parameters()]
    for p, grad in zip(net.parameters(), grads, strict=True):
        assert (p.grad is None) == (grad is None) and (grad is None or torch.equal(p.grad, grad))
    assert not x.requires_grad


def test_no_parameter_gradient_is_computed():
    layer = nn.Linear(12, 3)
    calls = []
    layer.weight.register_hook(lambda g: calls.append("weight"))
    pgd(lambda v: layer(v.flatten(1)).sum(1), torch.rand(2, 3, 1, 2, 2), ThreatModel(), steps=2)
    assert calls == []


def test_works_under_no_grad_and_bf16_autocast():
    net, x, y = _net(), torch.rand(4, 3, 2, 6, 6), torch.randint(4, (4,))
    threat = ThreatModel("linf", 0.1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = pgd(_ce(net, y), x, threat, steps=5)
    assert out.dtype == torch.float32 and contains(threat, x, out).all()
    assert _ce(net, y)(out).mean() > _ce(net, y)(x).mean()


def test_mistakes_are_refused():
    x = torch.rand(2, 3, 1, 4, 4)
    threat = ThreatModel()
    with pytest.raises(ValueError, match="attack before normalisation"):
        fgsm(lambda v: v.flatten(1).sum(1), x * 255, threat)
    with pytest.raises(ValueError, match=r"one number a sample, \(B,\); got \(\)"):
        pgd(lambda v: v.sum(), x, threat)
    with pytest.raises(ValueError, match=r"samples \[1\] is NaN"):
        pgd(lambda v: v.flatten(1).sum(1) * torch.tensor([1.0, float("nan")]), x, threat)
    with pytest.raises(ValueError, match="steps=0"):
        pgd(lambda v: v.flatten(1).sum(1), x, threat, steps=0)


def test_agrees_with_foolbox_on_images():
    foolbox = pytest.importorskip("foolbox")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(1), nn.Linear(8 * 36, 5)).eval()
    x, y, eps = torch.rand(64, 3, 8, 8), torch.randint(5, (64,)), 0.03
    theirs = foolbox.attacks.LinfPGD(steps=10, abs_stepsize=0.01, random_start=False)
    _, clipped, _ = theirs(foolbox.PyTorchModel(net, bounds=(0, 1)), x, y, epsilons=eps)
    ours = pgd(_ce(net, y), x, ThreatModel("linf", eps), steps=10, step_size=0.01, random_start=False)
    a, b = _ce(net, y)(ours), _ce(net, y)(clipped)
    assert (a >= b - 1e-4).all()  # the same iterates; ours keeps the best of them
    assert (a - b).abs().median() < 1e-3
