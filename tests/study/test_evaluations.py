"""A study measures its runs by further evaluations, for the claims that need them."""

import json
import shutil

import pytest

from tests.helpers import tool
from tests.study.helpers import study_page
from vidrobust.cli.folder_status import statuses
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
    measures: [robust linf-4/255, alignment]
    expected: below
    evaluation: strong
"""

ARMS = ("simclr", "supcon", "fixed")


@pytest.fixture
def page(tmp_path):
    return study_page(tmp_path, PAGE)


def study(page, out, *words):
    return tool("study", "--cfg", page, "--output-dir", out, *words, cwd=page.parent)


def evaluations(out):
    return {
        f"{path.parents[3].name} {path.parent.name}": path.stat().st_mtime_ns
        for path in out.glob("clips/*/seed*/eval/*/summary.json")
    }


def test_what_is_missing_is_added_without_training_again(page):
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
    # a killed command has written which evaluations the runs need
    plan_of = json.loads((out / "plan.json").read_text())
    plan_of["evaluations"] = {run: ["study", "strong"] for run in plan_of["runs"]}
    (out / "plan.json").write_text(json.dumps(plan_of))
    (status,) = [each for each in statuses([out]) if each.kind == "study"]
    assert (status.done, status.total, status.state) == (0, 3, "stopped")
    done = study(page, out, "--jobs", "2")
    assert done.returncode == 0, done.stderr
    after = evaluations(out)
    assert set(after) - set(before) == {"simclr strong", "supcon strong"}
    assert {name: after[name] for name in before} == before
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    (status,) = [each for each in statuses([out]) if each.kind == "study"]
    assert (status.done, status.total, status.state) == (3, 3, "finished")
    # options without effect on results may differ
    assert study(page, out, "eval.pictures=3").returncode == 0
    assert evaluations(out) == after
    # under another eval.name the runs are measured by that evaluation alone
    again = study(page, out, "eval.name=again", "eval.threats=[linf-8/255]")
    assert again.returncode == 0, again.stderr
    assert set(evaluations(out)) - set(after) == {f"{arm} again" for arm in ARMS}


def test_a_claim_is_tested_by_its_evaluation(page):
    out = page.parent / "out"
    assert study(page, out, "--arms", "simclr,supcon").returncode == 0
    robust, alignment = [], []
    for place, arm in enumerate(("simclr", "supcon")):
        path = out / f"clips/{arm}/seed0/eval/strong/summary.json"
        summary = json.loads(path.read_text())
        assert summary["suite"] == "pgd-2x1"
        assert [entry["threat"] for entry in summary["curve"]] == ["linf-4/255"]
        robust.append(summary["robust_acc"])
        summary["geometry"]["trained"]["alignment"] = 0.25 + place
        alignment.append(0.25 + place)
        path.write_text(json.dumps(summary))
    rows = verdicts(read_study(page), finished(plan(read_study(page), out)))
    assert [row.test.values for row in rows if row.test is not None] == [
        [robust[0] - robust[1]],
        [alignment[0] - alignment[1]],
    ]
    assert [row.prediction for row in rows] == [
        "robust linf-4/255: simclr below supcon (strong)",
        "alignment: simclr below supcon (strong)",
    ]
    assert [row.notes for row in rows] == [()] * 2


def test_an_evaluation_is_refused_before_the_training(page):
    page.write_text(PAGE.replace("eval.steps=2]", "eval.steps=2, eval.branch=adv]"))
    refused = study(page, page.parent / "out")
    assert refused.returncode == 1 and "eval.branch=adv" in refused.stderr
    assert not list(page.parent.glob("out/clips/*/*/checkpoints"))


def test_with_until_runs_are_measured_on_the_test_split_and_not_again(page):
    until = 'until: {accuracy: 0.99, steps: 4, options: ["eval.threats=[]"]}\n'
    text = PAGE.replace("seeds:", until + "seeds:").replace(
        "[train.epochs=1,", "[train.epochs=1, data.validation=0.25, optim.schedule=constant,"
    )
    page.write_text(text)
    out = page.parent / "out"
    assert study(page, out, "--arms", "simclr").returncode == 0
    summary = json.loads((out / "clips/simclr/seed0/eval/strong/summary.json").read_text())
    assert "validation" not in summary["split"]
    before = evaluations(out)
    again = study(page, out, "--arms", "simclr")
    assert again.returncode == 0, again.stderr
    assert evaluations(out) == before


def test_data_sets_that_no_claim_is_about_are_not_measured(page):
    page.write_text(
        PAGE.replace("{clips: base.yaml}", "{clips: base.yaml, more: base.yaml}").replace(
            "    evaluation: strong", "    evaluation: strong\n    datasets: [more]"
        )
    )
    runs = plan(read_study(page), page.parent / "out")
    assert [(run.dataset, run.name) for run in runs if run.further] == [
        ("more", "simclr"),
        ("more", "supcon"),
    ]


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
    # a file that was written before evaluations had their options gets them
    text = (folder / "records.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    for row in rows:
        row.get("files", {}).pop("eval/strong/identity.json", None)
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert study(page, folder / "here", *records, "--report-only").returncode == 0
    assert sorted((folder / "records.jsonl").read_text().splitlines()) == sorted(text.splitlines())
    shutil.rmtree(folder / "data")  # nothing is measured below
    page.write_text(PAGE.replace("eval.steps=2", "eval.steps=3"))
    for out in ("here", "there", "third"):
        refused = study(page, folder / out, *records)
        assert refused.returncode == 1 and "Traceback" not in refused.stderr
        assert "strong holds an evaluation with other options (eval.steps); " in refused.stderr


def test_options_name_the_study_folder_and_may_be_older(page):
    out, records = page.parent / "out", page.parent / "records.jsonl"
    tuned = 'arms: {simclr: [], tuned: ["model.weights={simclr}/backbone.pt"]}\n'
    page.write_text(PAGE.split("arms:")[0] + tuned + 'evaluations: {strong: ["eval.threats=[]"]}\n')
    words = ("--records", records)
    assert study(page, out, *words).returncode == 0
    assert f"{out}" not in records.read_text()
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    identity = "eval/strong/identity.json"
    (row,) = [r for r in rows if "tuned" in r.get("run", "") and identity in r["files"]]
    content = json.loads(row["files"][identity])
    weights = content["options"]["model.weights"]
    assert weights == "{study}/clips/simclr/seed0/backbone.pt"
    # evaluations that were recorded before an option was there count as made with its value
    del content["options"]["eval.steps"]
    row["files"][identity] = json.dumps(content)
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = study(page, out, *words, "--report-only")
    assert again.returncode == 0, again.stderr
    # a value that differs is refused
    content["options"]["eval.restarts"] = "7"
    row["files"][identity] = json.dumps(content)
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = study(page, out, *words, "--report-only")
    assert refused.returncode == 1
    assert "strong holds an evaluation with other options than" in refused.stderr
    assert "eval.restarts" in refused.stderr and "eval.steps" not in refused.stderr


def test_a_run_that_came_without_weights_is_measured_no_further(page):
    folder = page.parent
    records = ("--records", folder / "records.jsonl")
    page.write_text(PAGE.split("evaluations:")[0])
    assert study(page, folder / "here", *records).returncode == 0
    page.write_text(PAGE)
    there = study(page, folder / "there", *records)
    assert there.returncode == 0, there.stderr
    assert sorted(evaluations(folder / "there")) == ["fixed study", "simclr study", "supcon study"]
    row, _ = verdicts(read_study(page), finished(plan(read_study(page), folder / "there")))
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
        ("evaluations: {x: [optim.lr=1]}", "evaluations: x: optim.lr is an option of the run"),
        ("evaluations: {x: [seed=7]}", "evaluations: x: seed is an option of the run"),
        ('evaluations: {x: ["eval.transfer=[{simclr}]"]}', "must not name an arm's run"),
        (
            "evaluations: {strong: []}\nclaims: [{name: n, source: s, says: t, arm: simclr,"
            " measures: [clean], expected: above, evaluation: stong}]",
            "claims: no evaluation 'stong'; did you mean 'strong'",
        ),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_refused(page, text, reason):
    page.write_text(PAGE.split("evaluations:")[0] + text)
    with pytest.raises(UserError, match=reason):
        plan(read_study(page), page.parent / "out")
