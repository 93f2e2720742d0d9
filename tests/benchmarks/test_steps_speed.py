"""The floors make the passes that the methods make; the public steps are the methods' own, but for
their waste.
"""

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
    floor_step,
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
def test_a_floor_makes_the_methods_passes(name):
    cfg = config.loads("", [*SMALL, "method.adversary.steps=2"])
    method = configured(cfg, *name, torch.device("cpu"))
    views, ids = torch.rand(4, 3, 3, 2, 16, 16), torch.arange(4)
    counter, at_once = PassCounter(method), []
    method.model.register_forward_hook(lambda model, clips, z: at_once.append(len(z)))
    method(views[:, : method.views], ids, ids % 2)["loss"].mean().backward()
    own, most = counter.take(), max(at_once)
    at_once.clear()
    floor_step(method.model, views[:, 0], cost_of(cfg, *name)).backward()
    assert counter.take() == own and max(at_once) == most
    assert all(p.grad is not None for p in method.model.parameters())


def test_the_public_step_of_clae_is_claes():
    """Norms in eval mode, so that passes see the same ones however often they are made."""
    model, views, ids = (
        add_branches(build_model(TINY, "projector")).eval(),
        torch.rand(4, 2, 3, 1, 16, 16),
        torch.arange(4),
    )
    views = 0.2 + 0.6 * views  # nothing is clamped
    theirs = public_clae(model, views[:, 0], views[:, 1], 0.5, 0.02)
    adversary = Adversary(one_step(0.02).threats)  # norms as they are, in eval mode
    ours = AdversarialSimCLR(model, LossSettings(0.5), adversary, pairing=partial(clae, alpha=1.0))(
        views, ids, ids
    )["loss"].mean()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-4)


def test_a_floor_is_of_one_threat():
    with pytest.raises(ValueError, match="a floor is that of one threat"):
        cost_of(
            config.loads("", [*SMALL, "method.adversary.threats=[linf-0.1,l2-1]"]), "simclr", "clae"
        )


def test_ways_are_timed_in_turn():
    found = measure_steps(
        config.loads("", SMALL), [("simclr", "none"), ("simclr", "rocl")], 4, 2, torch.device("cpu")
    )
    assert [(t.method, t.kind) for t in found] == [
        ("simclr", "vidrobust"),
        ("simclr", "floor"),
        ("rocl", "vidrobust"),
        ("rocl", "floor"),
        ("rocl", "public code"),
    ]
    assert all(len(t.seconds) == 2 and t.median > 0 and t.memory_gb == 0 for t in found)


def test_the_tool_prints_a_row_a_step(tmp_path):
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
        "| deacl | floor | ",
        "4 videos of 2 x 16 x 16",
    ):
        assert text in done.stdout
    done = tool("benchmark", "adversarial", "--methods", "cale", cwd=tmp_path)
    assert (
        done.returncode == 1
        and "--methods: unknown name 'cale'; did you mean 'clae'" in done.stderr
    )
