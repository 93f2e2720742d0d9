"""An evaluation that is killed goes on with the same bits, and a finished one is not done again."""

import sys
from types import SimpleNamespace

import pytest
import torch

from tests.helpers import tiny, tiny_ucf101
from vidrobust import checkpoint, config
from vidrobust.attacks import BadSamples, parse_threat
from vidrobust.evaluation import DiskStore, evaluate, load_method, read_summary
from vidrobust.evaluation.adversarial.targets import Unit
from vidrobust.methods import build_method
from vidrobust.training.loop import train
from vidrobust.utils.errors import UserError

MODULE = sys.modules["vidrobust.evaluation.evaluate"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    top = tmp_path_factory.mktemp("evaluate")
    root = tiny_ucf101(top / "data")
    cfg = config.loads(
        "", tiny(f"data.root={root}", "data.short_side=24")
    )  # a width that decord cannot make
    return cfg, checkpoint.read_checkpoint(train(cfg, top / "run"))


def _never(*args, **kwargs):
    raise KeyboardInterrupt


def _files(folder):
    """All but the seconds, and the command and date of the process."""
    found = [
        p
        for p in sorted(folder.rglob("*"))
        if p.suffix in (".json", ".jsonl")
        and "timing" not in p.name
        and p.name not in ("environment.json", "card.json")
    ]
    return {p.relative_to(folder): p.read_bytes() for p in found}


@pytest.mark.parametrize("killed_in", ["measure_representation", "evaluate_robust", "write_report"])
def test_killed_it_goes_on_without_decoding_for_features_again(
    trained, tmp_path, monkeypatch, killed_in
):
    evaluate(*trained, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(MODULE, killed_in, _never)
        with pytest.raises(KeyboardInterrupt):
            evaluate(*trained, tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(DiskStore, "append", _never)
        evaluate(*trained, tmp_path / "cut")
    assert _files(tmp_path / "cut") == _files(tmp_path / "whole")
    assert not list(tmp_path.rglob("features*"))


def test_a_finished_one_is_only_drawn_again(trained, tmp_path, monkeypatch):
    first = evaluate(*trained, tmp_path)
    (tmp_path / "report.md").unlink()
    for name in ("extract", "evaluate_robust"):
        monkeypatch.setattr(MODULE, name, _never)
    assert evaluate(*trained, tmp_path) == first == read_summary(tmp_path / "summary.json")
    assert (tmp_path / "report.md").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["eval.suite=roa", "eval.threats=[linf-1]"],
        ["eval.suite=fab-t", "eval.threats=[linf-1,l2_frame-1]"],
    ],
)
def test_a_suite_that_is_not_for_its_threat_is_told_first_and_leaves_nothing_behind(
    trained, tmp_path, monkeypatch, words
):
    cfg, state = trained
    monkeypatch.setattr(MODULE, "extract", _never)
    with pytest.raises(UserError, match="eval.suite=.* under"):
        evaluate(config.loads(config.to_yaml(cfg), words), state, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_without_effect_are_told(trained, tmp_path, monkeypatch):
    cfg, state = trained
    told = []
    monkeypatch.setattr(MODULE.log, "warning", told.append)
    words = [
        "eval.suite=fmn",
        "eval.steps=30",
        "eval.queries=9",
        "eval.effort=2",
        "eval.threats=[linf-1/255,linf-1]",
    ]
    summary = evaluate(config.loads(config.to_yaml(cfg), words), state, tmp_path)
    assert told.count("no effect with eval.suite=fmn: eval.queries, eval.effort") == 1
    assert list(summary.median_norm) == ["linf"]
    assert (
        "Median smallest change that breaks a correctly classified video: linf"
        in (tmp_path / "report.md").read_text()
    )


def test_clean_accuracy_after_h264_stands_beside_the_others(trained, tmp_path):
    cfg, state = trained
    assert evaluate(cfg, state, tmp_path / "without").clean_acc_h264 is None
    summary = evaluate(
        config.loads(config.to_yaml(cfg), ["eval.h264=30"]), state, tmp_path / "with"
    )
    assert 0 <= summary.clean_acc_h264 <= 1
    assert " after H.264). Robust accuracy against all" in (tmp_path / "with/report.md").read_text()


def test_checks_look_at_clips_from_all_over_the_list(trained, tmp_path, monkeypatch):
    """Lists are sorted by class: their first clips may all be of one that the model never gets
    right.
    """
    cfg, state = trained
    seen = []
    monkeypatch.setattr(
        MODULE, "self_checks", lambda predict, x, y, threat, **_: seen.append(y.tolist()) or []
    )
    evaluate(config.loads(config.to_yaml(cfg), ["eval.checks=2"]), state, tmp_path)
    assert seen == [[0, 1]]


@pytest.mark.parametrize(
    ("nan", "line"),
    [
        ([0, 1, 2, 3], "model and attack were not checked: no clip can be used: "),
        ([1], "checks left out clips: "),
        ([], None),
    ],
)
def test_checks_without_a_clip_are_a_doubt(trained, tmp_path, monkeypatch, nan, line):
    def of_clips(model, x, *args, **options):
        numbers = x[:, 0, 0, 0, 0].int().tolist()
        bad = [place for place, number in enumerate(numbers) if number in nan]
        if bad:
            raise BadSamples(bad[:1], "NaN in samples {}")
        return []

    x = torch.arange(4.0)[:, None, None, None, None].expand(4, 3, 2, 4, 4)
    names = [f"v{i}" for i in range(4)]
    unit = Unit(x, torch.zeros(4, dtype=int), names, list(range(4)), [25.0] * 4, [], None, None)
    monkeypatch.setattr(MODULE, "self_checks", of_clips)
    monkeypatch.setattr(MODULE, "clip_units", lambda *args: [unit])
    cfg = config.loads(config.to_yaml(trained[0]), ["eval.checks=4"])
    run = SimpleNamespace(cfg=cfg, out=tmp_path, indices=range(4), device=x.device)
    lines = MODULE._checks(run, None, None, parse_threat("linf-1/255"))
    assert [text[: len(line)] for text in lines] == ([line] if line else [])


def test_a_damaged_card_is_refused_before_anything_is_measured(trained, tmp_path, monkeypatch):
    def stopped(*args):
        raise InterruptedError

    monkeypatch.setattr(MODULE, "_measure", stopped)
    with pytest.raises(InterruptedError):
        evaluate(*trained, tmp_path)
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(UserError, match="card.json: no valid card"):
        evaluate(*trained, tmp_path)


def test_a_border_that_no_view_shows_is_told(trained, monkeypatch):
    told = []
    monkeypatch.setattr(MODULE.log, "warning", told.append)
    words = [
        "data.short_side=24",
        "data.size=16",
        "eval.unit=video",
        "eval.threats=[border4-linf-1]",
    ]  # 4 are cut off
    base = config.to_yaml(trained[0])
    MODULE.check_suite(config.loads(base, words))
    assert (
        len(told) == 1
        and "the centre crop shows none: it ends 4 pixels inside; use border5" in told[0]
    )
    for other in (["eval.threats=[border5-linf-1]"], ["eval.crops=3"], ["eval.unit=clip"]):
        kept = [word for word in words if word.split("=")[0] != other[0].split("=")[0]]
        MODULE.check_suite(config.loads(base, [*kept, *other]))
    assert not [line for line in told[1:] if "shows none" in line]


def test_geometry_is_told_and_sensitivity_where_it_is_asked_for(trained, tmp_path):
    cfg, state = trained
    words = ["eval.threats=[linf-0]", "eval.sensitivity=3", "eval.sensitivity_eps=[0.05,0.01]"]
    summary = evaluate(config.loads(config.to_yaml(cfg), words), state, tmp_path)
    assert (
        summary.geometry["trained"].uniformity <= 0
        and summary.geometry["random"].margin_mean is not None
    )
    assert [b.eps for b in summary.sensitivity.budgets] == [0.01, 0.05]
    assert summary.sensitivity.n == 3
    report = (tmp_path / "report.md").read_text()
    assert "## Geometry" in report and "## Sensitivity" in report and "nan" not in report
    with pytest.raises(UserError, match="eval.sensitivity=1: distances between clips need two"):
        config.loads(config.to_yaml(cfg), ["eval.sensitivity=1"])


def test_a_branch_that_the_checkpoint_lacks_is_told():
    state = {"step": 1, "model": build_method(config.loads("", tiny()), 2).model.state_dict()}
    for words, reason in (
        (
            ["eval.branch=adv"],
            "eval.branch=adv: the checkpoint was trained without it; it has clean",
        ),
        (["eval.branch=average"], "eval.branch=average: the checkpoint was trained without it"),
    ):
        with pytest.raises(UserError, match=reason):
            load_method(config.loads("", tiny("method.adversary.name=clae", *words)), state, 2)
