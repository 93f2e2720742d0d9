"""Training stops at a given accuracy on held-out videos."""

import json

import pytest
import torch

from tests.helpers import tiny, tiny_ucf101, tool
from vidrobust import checkpoint, config
from vidrobust.study import plan, read_study
from vidrobust.study import run as study_run
from vidrobust.study.run import finished, run_arm
from vidrobust.study.until import Checks, Until, read_checks
from vidrobust.training.loop import train
from vidrobust.utils.errors import UserError

PAGE = """
seeds: [0]
datasets: {clips: base.yaml}
common: [data.validation=0.5, train.epochs=4, eval.name=study, "eval.threats=[linf-0]"]
arms: {simclr: []}
until: {accuracy: 0.99, steps: 3, options: ["eval.threats=[]"]}
"""


@pytest.fixture
def page(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    words = tiny(f"data.root={root}", "train.batch_size=2")
    (tmp_path / "base.yaml").write_text(config.to_yaml(config.loads("", words)))
    (tmp_path / "study.yaml").write_text(PAGE)
    return tmp_path / "study.yaml"


def accuracies(monkeypatch, values):
    """Have evaluations of held-out videos find these accuracies, in turn."""
    evaluate = study_run.evaluate
    left = iter(values)

    def faked(cfg, state, out):
        summary = evaluate(cfg, state, out)
        if out.name.startswith("until_"):
            assert cfg.data.validation == 0.5 and cfg.eval.threats == []
            probe = summary.representation["trained_probe"]
            object.__setattr__(probe, "acc", next(left))
        return summary

    monkeypatch.setattr(study_run, "evaluate", faked)


def test_it_stops_at_the_accuracy_and_is_measured_on_the_test_split(page, monkeypatch):
    accuracies(monkeypatch, [0.5, 0.995])
    (arm,) = plan(read_study(page), page.parent / "out")
    summary = run_arm(arm)
    records = summary.n
    assert read_checks(arm.folder) == Checks(0.99, {3: 0.5, 6: 0.995}, True)
    assert checkpoint.read_checkpoint(arm.folder)["step"] == 6
    whole = config.load(page.parent / "base.yaml")
    assert records == 4 and not whole.data.validation  # all test videos, and not those held out
    (run,) = finished([arm])
    assert run.shortfalls == ()


def test_in_parts_it_is_the_run_that_it_would_be_in_one(page, monkeypatch):
    accuracies(monkeypatch, [0.1, 0.2, 0.3])
    (arm,) = plan(read_study(page), page.parent / "out")
    run_arm(arm)
    train(arm.cfg, page.parent / "whole")
    parts, whole = (
        checkpoint.read_checkpoint(folder) for folder in (arm.folder, page.parent / "whole")
    )
    assert parts["step"] == whole["step"]
    for key, value in whole["model"].items():
        assert torch.equal(value, parts["model"][key])
    (run,) = finished([arm])
    assert len(run.shortfalls) == 1
    assert run.shortfalls[0].endswith("held-out videos, below the 99.0 % that were to be reached")


def test_checks_grow_apart_with_the_steps():
    until, steps = Until(0.5, 50), [0]
    while steps[-1] < 800:
        steps.append(until.next_check(steps[-1]))
    assert steps[:12] == [0, 50, 100, 150, 200, 250, 300, 350, 400, 450, 500, 550]
    assert steps[12:] == [605, 665, 731, 804]


def test_a_run_is_checked_at_these_steps(page, monkeypatch):
    monkeypatch.setattr(Until, "next_check", lambda self, done: 2 * done + 2)
    accuracies(monkeypatch, [0.1, 1.0])
    (arm,) = plan(read_study(page), page.parent / "out")
    run_arm(arm)
    assert read_checks(arm.folder).accuracies == {2: 0.1, 6: 1.0}


def test_a_run_that_was_stopped_repeats_no_check(page, monkeypatch):
    (arm,) = plan(read_study(page), page.parent / "out")
    with monkeypatch.context() as patch:
        accuracies(patch, [0.1])
        with pytest.raises(StopIteration):  # in the second check
            run_arm(arm)
    assert read_checks(arm.folder).accuracies == {3: 0.1}
    accuracies(monkeypatch, [1.0])
    run_arm(arm)
    assert read_checks(arm.folder).accuracies == {3: 0.1, 6: 1.0}


def test_the_command_reports_an_arm_that_did_not_reach_it(page):
    claim = {
        "name": "a",
        "source": "b",
        "says": "c",
        "arm": "simclr",
        "against": "supcon",
        "measures": ["clean"],
        "expected": "below",
    }
    text = PAGE.replace("arms: {simclr: []}", "arms: {simclr: [], supcon: [method.name=supcon]}")
    page.write_text(text.replace("0.99", "0.9999") + f"claims: {json.dumps([claim])}\n")
    words = ("--cfg", page, "--output-dir", "out")
    done = tool("study", *words, cwd=page.parent)
    assert done.returncode == 0, done.stderr
    verdicts = tool("study", *words, "--verdicts", cwd=page.parent)
    reached = [
        read_checks(page.parent / f"out/clips/{arm}/seed0").shortfall == ""
        for arm in ("simclr", "supcon")
    ]
    missed = "below the 100.0 % that were to be reached"
    assert verdicts.stdout.count(missed) == reached.count(False)
    assert (page.parent / "out/study.md").read_text().count(missed) == reached.count(False)
    assert json.loads((page.parent / "out/verdicts.json").read_text())[0]["verdict"] == "undecided"


def test_another_accuracy_is_another_run(page, monkeypatch):
    accuracies(monkeypatch, [1.0])
    (arm,) = plan(read_study(page), page.parent / "out")
    run_arm(arm)
    page.write_text(PAGE.replace("0.99", "0.5"))
    (arm,) = plan(read_study(page), page.parent / "out")
    with pytest.raises(UserError, match="until an accuracy of 0.99, not 0.5; set --output-dir"):
        run_arm(arm)


@pytest.mark.parametrize(
    "old,new,message",
    [
        ("accuracy: 0.99, ", "", "until: must be a mapping with the keys accuracy and steps"),
        ("0.99", "60", "accuracy=60: must be in (0, 1)"),
        ("steps: 3", "steps: 0", "steps=0: must be at least 1"),
        ("data.validation=0.5, ", "", "until: runs must hold out videos"),
        ("options", "option", "until: unknown key 'option'; did you mean 'options'"),
    ],
)
def test_what_cannot_be_reached_is_refused(page, old, new, message):
    page.write_text(PAGE.replace(old, new))
    with pytest.raises(UserError) as error:
        plan(read_study(page), page.parent / "out")
    assert message in str(error.value)
