"""Training-step benchmark: lower bounds, public code, and the printed table."""

from functools import partial

import pytest
import torch

from tests.helpers import one_step, tool
from tests.methods.helpers import TINY
from vidrobust import config
from vidrobust.benchmarks.steps import (
    TIMED,
    configured,
    cost_of,
    lower_bound_step,
    measure_steps,
    public_clae,
)
from vidrobust.methods import AdversarialSimCLR, Adversary, LossSettings, clae
from vidrobust.models import add_branches, build_model
from vidrobust.training.pass_counter import PassCounter

SMALL = [
    "model.backbone=r2plus1d_10",
    "model.width=4",
    "data.frames=2",
    "data.size=16",
    "model.hidden=16",
    "model.dim=8",
    "method.predictor=8",
    "method.adversary.clusters=[2]",
]


@pytest.mark.parametrize("name", TIMED, ids=lambda n: n[1] if n[1] != "none" else n[0])
def test_the_lower_bound_makes_the_same_passes_as_the_method(name):
    cfg = config.loads("", [*SMALL, "method.adversary.steps=2"])
    method = configured(cfg, *name, torch.device("cpu"))
    views, ids = torch.rand(4, 3, 3, 2, 16, 16), torch.arange(4)
    counter = PassCounter(method)
    batch_sizes = []
    method.model.register_forward_hook(lambda model, clips, z: batch_sizes.append(len(z)))
    method(views[:, : method.views], ids, ids % 2)["loss"].mean().backward()
    passes = counter.take()
    largest = max(batch_sizes)
    batch_sizes.clear()
    lower_bound_step(method.model, views[:, 0], cost_of(cfg, *name)).backward()
    assert counter.take() == passes and max(batch_sizes) == largest
    assert all(p.grad is not None for p in method.model.parameters())


def test_the_loss_of_claes_public_code_equals_ours():
    """With batch norms in eval mode, so that repeated passes do not change them."""
    model = add_branches(build_model(TINY, "projector")).eval()
    views = torch.rand(4, 2, 3, 1, 16, 16)
    ids = torch.arange(4)
    views = 0.2 + 0.6 * views  # so that nothing is clamped
    theirs = public_clae(model, views[:, 0], views[:, 1], 0.5, 0.02)
    adversary = Adversary(one_step(0.02).threats)  # keeps norms in eval mode
    ours = AdversarialSimCLR(model, LossSettings(0.5), adversary, pairing=partial(clae, alpha=1.0))(
        views, ids, ids
    )["loss"].mean()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-4)


def test_the_lower_bound_is_refused_for_several_threats():
    with pytest.raises(ValueError, match="the lower bound is defined for one threat"):
        cost_of(
            config.loads("", [*SMALL, "method.adversary.threats=[linf-0.1,l2-1]"]), "simclr", "clae"
        )


def test_every_implementation_of_a_step_is_timed_in_every_round():
    timings = measure_steps(
        config.loads("", SMALL), [("simclr", "none"), ("simclr", "rocl")], 4, 2, torch.device("cpu")
    )
    assert [(t.method, t.kind) for t in timings] == [
        ("simclr", "vidrobust"),
        ("simclr", "lower bound"),
        ("rocl", "vidrobust"),
        ("rocl", "lower bound"),
        ("rocl", "public code"),
    ]
    assert all(len(t.seconds) == 2 and t.median > 0 and t.memory_gb == 0 for t in timings)


def test_the_tool_prints_a_row_per_step_and_refuses_unknown_names(tmp_path):
    words = [word for word in SMALL if not word.startswith("data.size")]
    done = tool(
        "benchmark",
        "adversarial",
        "--batch",
        "4",
        "--rounds",
        "1",
        "--methods",
        "clae,deacl",
        "device=cpu",
        "data.size=16",
        *words,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for text in (
        "| clae | vidrobust | ",
        "| clae | public code | ",
        "| deacl | lower bound | ",
        "4 videos of 2 x 16 x 16",
    ):
        assert text in done.stdout
    done = tool("benchmark", "adversarial", "--methods", "cale", cwd=tmp_path)
    assert (
        done.returncode == 1
        and "--methods: unknown name 'cale'; did you mean 'clae'" in done.stderr
    )
