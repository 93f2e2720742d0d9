"""A study measures its runs by further evaluations, for the claims that need them."""

import json
import shutil

import pytest

from tests.helpers import tiny, tiny_ucf101, tool
from vidrobust import config
from vidrobust.study import finished, plan, read_study
from vidrobust.study.verdicts import verdicts
from vidrobust.utils.errors import UserError

PAGE = """
seeds: [0]
datasets: {clips: base.yaml}
common: [train.epochs=1, eval.name=study, "eval.threats=[linf-0]"]
baseline: simclr
arms:
  simclr: []
  supcon: [method.name=supcon]
  fixed: [method.false_negatives.rule=fixed]
evaluations:
  strong: ["eval.threats=[linf-4/255]", eval.steps=2]
claims:
  - name: robust
    source: a paper
    says: one is less robust
    arm: simclr
    against: supcon
    measures: [robust linf-4/255]
    expected: below
    evaluation: strong
"""


@pytest.fixture
def page(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    (tmp_path / "base.yaml").write_text(config.to_yaml(config.loads("", tiny(f"data.root={root}"))))
    (tmp_path / "study.yaml").write_text(PAGE)
    return tmp_path / "study.yaml"


def study(page, out, *words):
    return tool("study", "--cfg", page, "--output-dir", out, *words, cwd=page.parent)


def evaluations(out):
    return {
        f"{path.parents[3].name} {path.parent.name}": path.stat().st_mtime_ns
        for path in out.glob("clips/*/seed*/eval/*/summary.json")
    }


def test_the_arms_of_its_claims_are_measured_and_what_is_missing_is_added(page):
    out = page.parent / "out"
    page.write_text(PAGE.split("evaluations:")[0])
    assert study(page, out).returncode == 0
    before = evaluations(out)
    assert sorted(before) == ["fixed study", "simclr study", "supcon study"]
    weights = {path: path.stat().st_mtime_ns for path in out.glob("clips/*/*/backbone.pt")}
    page.write_text(PAGE)
    listed = study(page, out, "--dry-run")
    assert [line.endswith(", finished") for line in listed.stdout.splitlines()] == [
        *(False, False),
        True,
    ]
    done = study(page, out, "--jobs", "2")
    assert done.returncode == 0, done.stderr
    after = evaluations(out)
    assert set(after) - set(before) == {"simclr strong", "supcon strong"}
    assert {name: after[name] for name in before} == before
    assert {path: path.stat().st_mtime_ns for path in weights} == weights, "not trained again"
    summary = json.loads((out / "clips/simclr/seed0/eval/strong/summary.json").read_text())
    assert summary["suite"] == "pgd-2x1" and [t["threat"] for t in summary["curve"]] == [
        "linf-4/255"
    ]
    (row,) = verdicts(read_study(page), finished(plan(read_study(page), out)))
    robust = [
        json.loads((out / f"clips/{arm}/seed0/eval/strong/summary.json").read_text())["robust_acc"]
        for arm in ("simclr", "supcon")
    ]
    assert row.test is not None and row.test.values == [robust[0] - robust[1]]
    assert row.notes == ()


def test_without_a_claim_that_names_it_all_arms_are_measured(page):
    page.write_text(PAGE.replace("    evaluation: strong\n", ""))
    runs = plan(read_study(page), page.parent / "out", ["eval.limit=5"])
    assert [[cfg.eval.name for cfg in run.further] for run in runs] == [["strong"]] * 3
    # options of the command line make it smaller as well
    assert [run.further[0].eval.limit for run in runs] == [5] * 3
    assert [run.further[0].eval.steps for run in runs] == [2] * 3


def test_with_other_options_it_is_refused_here_and_from_records(page):
    folder = page.parent
    records = ("--records", folder / "records.jsonl")
    assert study(page, folder / "here", *records).returncode == 0
    same = study(page, folder / "there", *records)
    assert same.returncode == 0 and len(evaluations(folder / "there")) == 5
    shutil.rmtree(folder / "data")  # nothing is measured below
    page.write_text(PAGE.replace("eval.steps=2", "eval.steps=3"))
    for out in ("here", "there", "third"):
        refused = study(page, folder / out, *records)
        assert refused.returncode == 1 and "Traceback" not in refused.stderr
        assert "strong holds an evaluation with other options (eval.steps); " in refused.stderr


def test_a_run_that_came_without_weights_is_measured_no_further(page):
    folder = page.parent
    records = ("--records", folder / "records.jsonl")
    page.write_text(PAGE.split("evaluations:")[0])
    assert study(page, folder / "here", *records).returncode == 0
    page.write_text(PAGE)
    there = study(page, folder / "there", *records)
    assert there.returncode == 0, there.stderr
    assert sorted(evaluations(folder / "there")) == ["fixed study", "simclr study", "supcon study"]
    (row,) = verdicts(read_study(page), finished(plan(read_study(page), folder / "there")))
    assert row.test is None
    assert row.notes == (
        "clips, simclr: no result of strong of seeds 0",
        "clips, supcon: no result of strong of seeds 0",
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("evaluations: [strong]", r"evaluations=\['strong'\]: must be a mapping of names to lists"),
        ("evaluations: {strong: eval.steps=2}", "strong: must be a list of key=value"),
        ("evaluations: {a/b: []}", "evaluations: 'a/b' cannot be the name of a folder"),
        ("evaluations: {until_3: []}", "evaluations: 'until_3' is a check of `until`"),
        ("evaluations: {study: []}", "evaluations: study: is the eval.name of the runs"),
        ("evaluations: {x: [optim.lr=1]}", "evaluations: x: optim.lr is an option of the training"),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_refused(page, text, reason):
    page.write_text(PAGE.split("evaluations:")[0] + text)
    with pytest.raises(UserError, match=reason):
        plan(read_study(page), page.parent / "out")
