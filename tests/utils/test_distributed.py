"""Two ranks on gloo give the same gradient as one process with the whole batch."""

import functools

import pytest
import torch
from torch import nn

from tests.helpers import REPO, one_step
from tests.processes import TWO_RANKS, run
from vidrobust.attacks import ThreatModel
from vidrobust.losses.air import regularizer
from vidrobust.losses.info_nce import Hardness
from vidrobust.methods import (
    BYOL,
    TARO,
    AdversarialSimCLR,
    AdversarialTraining,
    Adversary,
    Distill,
    InstDisc,
    LossSettings,
    Method,
    MoCo,
    MoCoSettings,
    MomentumEncoder,
    Removal,
    RuleNeeds,
    SupCon,
    ViewSettings,
    a2s,
    acl,
    clae,
    dynacl,
    plain,
    rocl,
    uel,
)
from vidrobust.methods.false_negatives.rules import mean_std, quantile
from vidrobust.methods.vicreg import VICReg
from vidrobust.utils import distributed

SCRIPT = """
import sys, torch
from vidrobust.utils import distributed
from tests.utils.test_distributed import KINDS, method, batch
distributed.start("cpu")
rank, world = distributed.rank(), distributed.world()
results = {}
for kind in KINDS:
    net = method(kind)
    views, ids, labels = (part.chunk(world)[rank] for part in batch(kind))
    # kept alive until after the backward pass, because its hooks end with it
    parallel = distributed.parallel(net, net.alike)
    for step in range(2):                     # the second step uses state of the first
        net.zero_grad()
        loss = parallel(views, ids + 8 * step, labels)["loss"]
        loss.mean().backward()
    mean = distributed.mean(loss.detach().mean())
    alike = [buffer for name, buffer in net.named_buffers() if name.startswith(net.alike)]
    for buffer in alike:
        assert (distributed.gather(buffer[None].float()) == buffer).all(), "same on all ranks"
    assert len(parallel.modules_buffers) + len(alike) == len(list(net.buffers())), "not sent"
    grads = [p.grad for p in net.parameters()]
    results[kind] = {"loss": mean, "grads": grads, "report": net.report()}
if rank == 0:
    torch.save(results, sys.argv[1])
distributed.stop()
"""


class _Norms(nn.Module):
    """A small model whose branches are the same.

    It has no batch norm, whose statistics would differ between ranks.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Sequential(nn.Flatten(1), nn.Linear(3 * 2 * 16, 12), nn.Tanh())
        self.head = nn.Linear(12, 6)
        self.backbone.selector, self.dim, self.backbone.dim = None, 6, 6

    def forward(self, x):
        return self.head(self.backbone(x))

    def use_branch(self, branch):
        from contextlib import nullcontext

        return nullcontext()


KINDS = (
    "simclr",
    "clae",
    "rocl",
    "acl",
    "moco with clae",
    "removal",
    "removal by the batch",
    "removal by mean_std",
    "removal in clae",
    "three clips",
    "chunks",
    "supcon",
    "vicreg",
    "plain",
    "uel",
    "moco",
    "moco with removal",
    "byol",
    "simsiam",
    "a2s",
    "air",
    "dynacl",
    "a_infonce",
    "taro",
    "deacl",
    "pgd",
    "threats",
    "pushed",
    "moco, pushed",
)


def method(kind: str) -> Method:
    model = _Norms()
    rules = {
        "removal by the batch": functools.partial(quantile, rate=0.3, over="batch"),
        "removal by mean_std": functools.partial(mean_std, k=0.5),
    }
    removal = Removal(
        rules.get(kind, functools.partial(quantile, rate=0.3)),
        action="attract" if kind == "moco with removal" else "eliminate",
        needs=RuleNeeds(whole_batch=kind in rules),
    )
    adversary = one_step(0.05)
    if kind in ("rocl", "acl", "a2s", "air", "dynacl", "a_infonce", "taro", "deacl", "pgd"):
        adversary = Adversary([ThreatModel("linf", 0.05)], steps=2, step=0.5)
    if kind.startswith("moco"):
        encoder = MomentumEncoder(model, 0.9)
        return MoCo(
            model,
            encoder,
            MoCoSettings(0.3, 20, 6),
            removal if "removal" in kind else None,
            adversary=adversary if "clae" in kind else None,
        )
    if kind in ("byol", "simsiam", "taro"):
        if kind == "taro":
            return TARO(model, nn.Linear(6, 6), adversary)
        return BYOL(model, nn.Linear(6, 6), MomentumEncoder(model, 0.9) if kind == "byol" else None)
    if kind == "vicreg":
        bias = [p for p in model.parameters() if p.requires_grad][-1]
        bias.requires_grad_(False)  # its gradient is zero: VICReg does not depend on a shift
        return VICReg(model)
    if kind == "pgd":
        return AdversarialTraining(model, adversary)
    if kind == "deacl":
        student = Distill(model, adversary)
        # With equal weights of teacher and student, the gradient at the clip would be zero up to
        # rounding, and its signs arbitrary.
        student.set_teacher(_Norms(seed=1))
        return student
    if kind == "threats":
        adversary = Adversary([ThreatModel("linf", 0.05), ThreatModel("l2", 0.5)], combine="worst")
    if kind in ("plain", "uel"):
        return InstDisc(model, LossSettings(0.3), {"plain": plain, "uel": uel}[kind], adversary)
    if kind == "supcon":
        return SupCon(model, LossSettings(0.3))
    return _simclr(kind, model, adversary, removal)


def _simclr(kind: str, model: _Norms, adversary: Adversary, removal: Removal) -> AdversarialSimCLR:
    """Return SimCLR with the adversary, the removal and the options of a kind."""
    clips = 3 if kind == "three clips" else 2
    chunk = 3 if kind == "chunks" else 0
    if kind == "dynacl":
        return AdversarialSimCLR(
            model, LossSettings(0.3), adversary, pairing=dynacl, slow=MomentumEncoder(model, 0.9)
        )
    if kind == "a_infonce":
        hard = Hardness(1.0, 0.12, 0.1)
        return AdversarialSimCLR(
            model, LossSettings(0.3, asymmetry=(0.2, 0.8), hardness=hard), adversary, pairing=rocl
        )
    has_adversary = kind in ("rocl", "acl", "a2s", "air", "threats") or "clae" in kind
    air = functools.partial(
        acl, invariance=functools.partial(regularizer, temperature=0.3, clean=0.5, adversarial=0.5)
    )
    pairings = {"rocl": rocl, "acl": acl, "a2s": a2s, "air": air}
    return AdversarialSimCLR(
        model,
        LossSettings(0.3, chunk=chunk),
        adversary if has_adversary else None,
        removal if "removal" in kind else None,
        pairing=pairings.get(kind, clae),
        views=ViewSettings(clips=clips, original=kind == "air"),
    )


def batch(kind: str):
    """Return eight videos of two or three views; the third is a negative or the original clip."""
    generator = torch.Generator().manual_seed(5)
    views = torch.rand(8, 3, 3, 2, 4, 4, generator=generator)
    three = "pushed" in kind or kind in ("three clips", "air")
    return views if three else views[:, :2], torch.arange(8), torch.arange(8) % 3


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("ranks")
    (tmp_path / "run.py").write_text(SCRIPT)
    command = [*TWO_RANKS, tmp_path / "run.py", tmp_path / "out.pt"]
    for _ in range(3):  # another process may take the free port that torchrun has chosen
        done = run(command, cwd=REPO, timeout=120)
        if "address already in use" not in done.stderr.lower():
            break
    assert done.returncode == 0, done.stderr
    return torch.load(tmp_path / "out.pt")


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one_process_with_the_whole_batch(two_ranks, kind):
    """Loss, gradient and report agree, because adversaries attack the loss of the whole batch."""
    net = method(kind)
    result = two_ranks[kind]
    views, ids, labels = batch(kind)
    for step in range(2):
        net.zero_grad()
        loss = net(views, ids + 8 * step, labels)["loss"].mean()
        loss.backward()
    assert torch.allclose(result["loss"], loss, atol=1e-5) and result["report"] == net.report()
    trained = [p for p in net.parameters() if p.requires_grad]
    grads = [grad for grad in result["grads"] if grad is not None]
    for a, p in zip(grads, trained, strict=True):
        assert torch.allclose(a, p.grad, atol=1e-5) and p.grad.abs().max() > 1e-5


def test_collectives_do_nothing_in_a_single_process():
    x = torch.rand(3, 2)
    assert distributed.world() == 1 and distributed.rank() == 0
    assert distributed.gather(x) is x and distributed.mean(x) is x
