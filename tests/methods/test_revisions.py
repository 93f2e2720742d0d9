"""Runs of an earlier revision whose method has changed: no resume, and the same evaluation."""

import re

import pytest
import torch

from tests.methods.helpers import load
from tests.training.helpers import tiny_config, train_state
from vidrobust import checkpoint, config
from vidrobust.evaluation.evaluate import load_method
from vidrobust.methods import require_options
from vidrobust.methods.revisions import REVISION, changed_since
from vidrobust.utils.errors import UserError

A = "method.adversary."


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            [A + "name=dynacl"],
            "momentum encoder now.*; train anew, or go on as before by .*key_encoder=false",
        ),
        ([A + "name=dynacl", A + "air=0.5"], "AIR does not halve .*; train anew in another"),
        ([A + "name=rocl"], "rocl is now as its authors released it"),
        ([A + "name=rocl", A + "hardness=1"], "A-InfoNCE weighs whole losses now"),
        (["method.name=byol"], "byol has another scale of its loss now"),
        (["method.name=uel"], "uel has another scale"),
        (["method.false_negatives.rule=topk_threshold"], "the same false negatives for all views"),
        ([A + "name=dynacl", A + "key_encoder=false"], ""),
        ([A + "name=acl"], ""),
        ([A + "name=clae"], ""),
        ([], ""),
    ],
)
def test_what_changed_is_named_with_the_way_out(words, reason):
    found = changed_since(load(*words).method, 1)
    assert re.search(reason, found) if reason else not found
    assert not changed_since(load(*words).method, REVISION)


def as_before(path, drop=("key_encoder",)):
    """A checkpoint as the revision before wrote it."""
    state = torch.load(path, weights_only=True)
    del state["method_revision"]
    lines = state["config"].splitlines()
    state["config"] = "\n".join(line for line in lines if line.split(":")[0].strip() not in drop)
    checkpoint.write_atomic(path, state)


def test_a_dynacl_run_without_a_momentum_encoder(ucf, tmp_path):
    words = [A + "name=dynacl", A + "steps=1", "train.checkpoint_every=1", "train.keep=9"]
    old = ["train.average=0.9", "eval.average=true", A + "key_encoder=false"]
    train_state(tiny_config(ucf, *words, *old), tmp_path / "old")
    path = tmp_path / "old/checkpoints/step_00000002.pt"
    as_before(path)
    state = checkpoint.read_checkpoint(path)
    cfg = checkpoint.configuration(state, str(path))
    assert not cfg.method.adversary.key_encoder
    load_method(cfg, state, 2)  # measured as before
    with pytest.raises(
        UserError, match="is of an earlier revision: dynacl's second view goes through a momentum"
    ):
        train_state(tiny_config(ucf, *words, "eval.average=true"), tmp_path / "new", path)
    assert train_state(tiny_config(ucf, *words, *old), tmp_path / "on", path)["step"] == 4


def test_an_advcl_run_whose_projector_has_branches_is_measured_as_before(ucf, tmp_path):
    train_state(tiny_config(ucf), tmp_path / "teacher")
    words = [
        A + "name=advcl",
        A + "clusters=[2]",
        A + "steps=1",
        f"method.teacher={tmp_path}/teacher",
        "model.head_norm=true",
        "train.max_steps=1",
    ]
    state = train_state(tiny_config(ucf, *words), tmp_path / "new")
    norms = [key for key in state["model"] if key.startswith("head.1.")]
    for key in norms:
        value = state["model"].pop(key)
        for branch in ("clean", "adv", "adv_ce"):
            state["model"][f"head.1.branches.{branch}.{key.removeprefix('head.1.')}"] = value
    cfg = config.loads(state["config"])
    found = load_method(cfg, state, 2).model.head.state_dict()
    assert norms and sum("branches" in key for key in found) == 3 * len(norms)


def test_dynacls_momentum_encoder_is_what_is_measured(ucf, tmp_path):
    words = [
        A + "name=dynacl",
        A + "steps=1",
        "method.momentum=0.5",
        "method.momentum_climbs=false",
    ]
    state = train_state(tiny_config(ucf, *words, "eval.average=true"), tmp_path)
    slow = {
        k.removeprefix("slow.model."): v
        for k, v in state["method"].items()
        if k.startswith("slow.")
    }
    measured = checkpoint.weights(state, average=True)
    assert slow and all(torch.equal(measured[key], value) for key, value in slow.items())
    assert any(not torch.equal(measured[key], value) for key, value in state["model"].items())
    kept = torch.load(tmp_path / "backbone.pt")
    assert torch.equal(kept["0.0.weight"], slow["backbone.trunk.0.0.weight"])
    with pytest.raises(
        UserError, match="dynacl has a momentum encoder, which eval.average measures"
    ):
        require_options(tiny_config(ucf, *words, "train.average=0.9"))
    with pytest.raises(UserError, match="only a run with train.average keeps an average"):
        require_options(tiny_config(ucf, *words, A + "key_encoder=false", "eval.average=true"))
