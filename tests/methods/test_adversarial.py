import torch

from vidrobust.attacks import ThreatModel, contains
from vidrobust.config import Model
from vidrobust.methods import CLAE, nt_xent
from vidrobust.models import add_branches, build_model

TINY = Model(backbone="r2plus1d_10", width=4, hidden=8, dim=8)
IDS = torch.arange(6).repeat(2)


def _pair(a, b):
    return nt_xent(torch.cat([a, b]), IDS, 0.5).view(2, -1).mean(0)


def test_the_view_obeys_its_budget_and_leaves_the_model_as_it_was():
    model = add_branches(build_model(TINY, "projector")).train()
    model.head[0].weight.requires_grad_(False)
    model.backbone.trunk[0].eval()
    model.head[2].weight.grad = torch.full_like(model.head[2].weight, 3.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    frozen = [p.requires_grad for p in model.parameters()]
    x = torch.rand(6, 3, 2, 16, 16)
    x_adv = CLAE(eps=0.03).view(model, x, _pair)
    assert contains(ThreatModel("linf", 0.03), x, x_adv).all() and (x_adv != x).any((1, 2, 3, 4)).all()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert flags == [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    assert frozen == [p.requires_grad for p in model.parameters()]
    assert (model.head[2].weight.grad == 3).all()
    assert all(p.grad is None for n, p in model.named_parameters() if n != "head.2.weight")


def test_the_view_raises_the_contrastive_loss():
    torch.manual_seed(0)
    model = add_branches(build_model(TINY, "projector")).train()
    x = torch.rand(6, 3, 2, 16, 16)
    x_adv = CLAE(eps=0.005).view(model, x, _pair)
    with torch.no_grad(), model.use_branch("adv"):
        z, z_adv = model(x), model(x_adv)
    assert _pair(z, z_adv).mean() > _pair(z, z).mean()


def test_eps_0_is_the_view_itself():
    model = add_branches(build_model(TINY, "projector")).train()
    x = torch.rand(6, 3, 1, 16, 16)
    assert torch.equal(CLAE(eps=0.0).view(model, x, _pair), x)
