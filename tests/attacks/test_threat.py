import pytest
import torch

from vidrobust.attacks import ThreatModel, contains, measure

SHAPES = [(4, 3, 1, 6, 5), (4, 3, 3, 6, 5), (4, 3, 6, 5)]  # T = 1, T = 3 (not channels), a 4-D image


@pytest.mark.parametrize("shape", SHAPES)
def test_projection_lands_inside_and_is_idempotent_and_nearest(shape):
    for _ in range(20):
        eps = float(torch.rand(()) * 0.3)
        threat, x = ThreatModel("linf", eps), torch.rand(shape)
        inside = threat.project(x, x + torch.randn(shape))
        assert contains(threat, x, inside).all()
        assert torch.equal(threat.project(x, inside), inside)
        y = x + torch.randn(shape)
        for other in (threat.random_start(x), x):  # no allowed clip is nearer
            assert ((threat.project(x, y) - y).abs() <= (other - y).abs() + 1e-6).all()


def test_eps_0_projects_onto_the_clip_itself():
    x = torch.rand(2, 3, 2, 4, 4)
    assert torch.equal(ThreatModel("linf", 0.0).project(x, torch.rand_like(x)), x)


def test_contains_measures_every_sample_from_its_pixels():
    threat, x = ThreatModel("linf", 8 / 255), torch.full((5, 3, 2, 4, 4), 0.5)
    y = x.clone()
    y[1, 0, 1, 2, 3] += 8 / 255
    y[2, 2, 0, 0, 0] -= 9 / 255
    y[3, 0, 0, 0, 0] = float("nan")
    x[4], y[4] = 1.0, 1.02
    assert contains(threat, x, y).tolist() == [True, True, False, False, False]
    assert measure(threat, x, y)[:3].tolist() == pytest.approx([0, 8 / 255, 9 / 255])


def test_random_starts_fill_the_budget_and_follow_their_generator():
    threat, x = ThreatModel("linf", 0.1), torch.full((2, 3, 4, 16, 16), 0.5)
    first, again = (threat.random_start(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, threat.random_start(x))
    noise = first - x
    assert contains(threat, x, first).all() and noise.abs().max() > 0.099 and abs(noise.mean()) < 0.01


@pytest.mark.parametrize("bad", [{"eps": -0.1}, {"eps": float("nan")}, {"norm": "l7"}, {"support": "nowhere"}])
def test_what_is_not_defined_is_refused(bad):
    with pytest.raises(ValueError, match="eps|no threat model"):
        ThreatModel(**bad)
