"""Options that methods take and refuse."""

import pytest

from tests.methods.helpers import load
from vidrobust import config
from vidrobust.methods import (
    ADVERSARIES,
    METHODS,
    build_method,
    require_branch,
    unmeasured,
    without_effect,
)
from vidrobust.models.branch_norm import BranchNorm
from vidrobust.utils.errors import UserError

FN = "method.false_negatives."


def test_entries_name_options_and_adversaries_that_exist():
    known = {key for key, _ in config.options(config.MethodConfig)}
    for spec in METHODS.values():
        assert spec.options | spec.fixed <= known and set(spec.adversaries) <= ADVERSARIES.keys()
        assert set(spec.refuses) <= {"false_negatives", "negatives"}
    for spec in ADVERSARIES.values():
        keys = spec.options | spec.attack | spec.fixed
        assert {f"adversary.{key}" for key in keys} <= known and "" in spec.costs


A = "method.adversary."


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ([A + "name=rocl"], "clean"),
        ([A + "name=acl"], "clean, adv, average"),
        ([A + "name=acl", A + "pairing=a2a"], "clean"),
        ([A + "name=advcl"], "clean, adv, adv_ce, average"),
        (
            [
                A + "name=clae",
                A + "threats=[linf-0.1,l2-1]",
                A + "combine=branches",
                A + "selector=true",
            ],
            "clean, adv, adv2, average, select",
        ),
    ],
)
def test_branches_are_those_that_are_trained(words, known):
    for branch in known.split(", "):
        require_branch(load(*words, f"eval.branch={branch}"))
    with pytest.raises(
        UserError, match=f"eval.branch=adv7: a model trained so has {known}; set one"
    ):
        require_branch(load(*words, "eval.branch=adv7"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([A + "name=acl", A + "selector=true"], "selector: it chooses among norm branches"),
        ([A + "name=rcol"], "adversary.name: unknown name 'rcol'; did you mean 'rocl'"),
        (["method.name=byol", A + "name=clae"], "adversary.name=clae: byol takes taro"),
        (["method.name=moco", A + "name=rocl"], "adversary.name=rocl: moco takes clae"),
        ([A + "name=clae", A + "faithful=true", A + "steps=2"], "one step within one Linf budget"),
        ([A + "name=rocl", A + "faithful=true"], "CLAE as published"),
        (
            ["method.name=supervised", A + "name=free", A + "threats=[patch3-linf-1]"],
            "dense, tube or flicker",
        ),
        ([A + "name=advcl", A + "combine=branches"], "set average or worst"),
        ([A + "name=clae", A + "faithful=true", A + "schedule=linear"], "CLAE as published"),
        (
            [A + "name=rocl", "method.clips_per_video=3"],
            "clips_per_video=3: rocl needs two clips per video",
        ),
        ([A + "name=acl", A + "pairing=a2s", A + "air=0.5"], "AIR's terms compare two streams"),
        ([A + "name=advcl", A + "clusters=[]"], "at least one granularity"),
        (["method.name=supervised", A + "name=free", A + "combine=branches"], "without branches"),
        ([A + "name=acl", A + "pairing=a2a", A + "combine=branches"], "a2a has no clean stream"),
        (
            [A + "name=clae", A + "steps=0"],
            "steps=0: an attack takes at least one step; method.adversary.name=none",
        ),
    ],
)
def test_adversaries_that_are_not_the_methods(words, reason):
    with pytest.raises(UserError, match=reason):
        build_method(load(*words), 5)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["name=acl"],
            "eval.branch=clean measures, and backbone.pt keeps, the branch that acl trains",
        ),
        (["name=advcl"], "advcl trains without"),
        (["name=acl", "pairing=a2a"], ""),
        (["name=rocl"], ""),
        (["name=clae"], ""),
    ],
)
def test_a_stream_that_is_not_measured_is_told(words, told):
    words = [A + word for word in words]
    assert told in unmeasured(load(*words)) and bool(unmeasured(load(*words))) == bool(told)
    if told:
        assert not unmeasured(load(*words, "eval.branch=adv"))


@pytest.mark.parametrize(
    ("words", "idle"),
    [
        (["method.name=supervised", "method.clips_per_video=3"], ["method.clips_per_video"]),
        (["method.name=byol", FN + "action=attract"], [FN + "action"]),
        (["method.name=moco", "method.chunk=8", "method.queue=64"], ["method.chunk"]),
        (["method.adversary.alpha=0.1"], ["method.adversary.alpha"]),
        (["method.adversary.alpha=0.1", "method.adversary.name=clae"], []),
        (["method.teacher=t", "method.adversary.name=advcl"], []),
        (["method.name=supervised", A + "name=fast", A + "steps=5"], [A + "steps"]),
        (["method.adversary.warmup=0.5", "method.adversary.name=acl"], ["method.adversary.warmup"]),
        (
            ["method.adversary.momentum=0.5", "method.adversary.name=rocl"],
            ["method.adversary.momentum"],
        ),
        (
            ["method.adversary.combine=worst", "method.adversary.name=acl"],
            ["method.adversary.combine"],
        ),
        (
            ["method.name=supervised", "method.adversary.name=free", "method.adversary.steps=3"],
            ["method.adversary.steps"],
        ),
        (
            [
                "method.adversary.warmup=0.5",
                "method.adversary.name=acl",
                "method.adversary.schedule=linear",
            ],
            [],
        ),
        (["method.momentum=0.5"], ["method.momentum"]),
        (["method.momentum=0.5", FN + "rule=fixed", FN + "encoder=momentum"], []),
        ([FN + "rule=mean_std", FN + "sigmas=3", FN + "k=3"], [FN + "k"]),
        ([FN + "rule=adaptive_threshold", FN + "threshold=0.5", FN + "warmup=0"], []),
        ([FN + "rule=oracle", FN + "clusters=3"], [FN + "clusters"]),
        ([FN + "rule=cluster", FN + "clusters=3", FN + "siblings=false"], []),
    ],
)
def test_options_without_effect(words, idle):
    assert without_effect(load(*words)) == idle


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            [FN + "rule=topk", FN + "k=14", "train.batch_size=8"],
            "k=14: an anchor has 14 negatives; choose fewer",
        ),
        (
            [
                FN + "rule=topk_threshold",
                FN + "k=9",
                "method.name=moco",
                "method.queue=9",
                "train.batch_size=8",
            ],
            "an anchor has 9 negatives",
        ),
        ([FN + "rule=cluster", FN + "clusters=1"], "clusters=1: .*with one cluster all"),
    ],
)
def test_rules_that_would_take_everything(words, reason):
    with pytest.raises(UserError, match=reason):
        build_method(load(*words), 5)


def test_a_k_of_all_but_one_is_let():
    build_method(load(FN + "rule=topk", FN + "k=13", "train.batch_size=8"), 5)


@pytest.mark.parametrize(
    ("words", "momentum"),
    [
        ([A + "name=clae"], 0.01),
        ([A + "name=acl"], 0.1),
        ([A + "name=advcl"], 0.1),
        ([A + "name=dynacl", A + "momentum=0.02"], 0.02),
        (
            [
                "method.name=supervised",
                A + "name=pgd",
                A + "threats=[linf-1/255,l2-1]",
                A + "combine=branches",
            ],
            0.1,
        ),
    ],
)
def test_the_momentum_of_adversarial_branches_is_the_methods_own(words, momentum):
    """CLAE's code has 0.01; ACL's and AdvCL's use the default of a batch norm."""
    norms = [m for m in build_method(load(*words), 3).modules() if isinstance(m, BranchNorm)]
    assert norms and {norm.branches["clean"].momentum for norm in norms} == {0.1}
    assert {
        branch.momentum
        for norm in norms
        for name, branch in norm.branches.items()
        if name != "clean"
    } == {momentum}


def test_the_attacks_of_clae_advcl_and_fast_see_statistics_of_the_batch():
    assert {name for name, spec in ADVERSARIES.items() if spec.train_mode} == {
        "clae",
        "advcl",
        "fast",
    }
