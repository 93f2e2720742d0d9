"""A study repeats no finished run, and its tables summarise its runs."""

import dataclasses
import json
import math
import statistics
from pathlib import Path

import pytest

from tests.helpers import REPO, tool
from tests.study.helpers import finished_runs, study_page
from vidrobust.evaluation.representation.multi_label import MeanAveragePrecision
from vidrobust.methods import RULES
from vidrobust.study import (
    ArmResult,
    Study,
    plan,
    read_study,
    summarise,
    write_study,
)
from vidrobust.study.arm_table import student_t
from vidrobust.study.plan import chosen
from vidrobust.utils.errors import UserError

PAGE = """
seeds: [0, 1]
datasets: {{clips: base.yaml}}
common: [{common}]
baseline: simclr
comparators: [supcon]
arms:
  supcon: [method.name=supcon]
  simclr: []
  fixed: [method.false_negatives.rule=fixed, method.false_negatives.threshold=0.1]
"""
COMMON = [
    "train.epochs=1",
    "eval.name=study",
    "eval.threats=[linf-0,linf-4/255]",
    "eval.corruption.names=[contrast]",
    "eval.corruption.severities=[3]",
]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return study_page(tmp_path, PAGE.format(common=", ".join(f'"{word}"' for word in COMMON)))


@pytest.mark.usefixtures("whole_reports")
def test_finished_runs_are_not_repeated_and_a_stopped_study_continues(page):
    folder = page.parent
    words = ("--cfg", page, "--output-dir", "out")
    first = tool("study", *words, "--seeds", "0", "--arms", "simclr,supcon", cwd=folder)
    assert first.returncode == 0, first.stderr
    runs = sorted(
        p.parent.relative_to(folder / "out").as_posix()
        for p in folder.glob("out/*/*/*/config.yaml")
    )
    assert runs == ["clips/simclr/seed0", "clips/supcon/seed0"]
    assert "Not finished: 4 of 6 runs" in (folder / "out/study.md").read_text()
    kept = {p: p.stat().st_mtime_ns for p in folder.glob("out/clips/*/seed0/checkpoints/*.pt")}
    (
        folder / "out/clips/supcon/seed0/eval/study/summary.json"
    ).unlink()  # stopped before it was measured
    done = tool("study", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert len(list(folder.glob("out/*/*/*/eval/study/summary.json"))) == 6
    simclr = {p: t for p, t in kept.items() if "/simclr/" in str(p)}
    assert all(p.stat().st_mtime_ns == t for p, t in simclr.items()), "not trained again"
    arms = json.loads((folder / "out/study.json").read_text())["clips"]
    values = [
        json.loads((folder / f"out/clips/fixed/seed{s}/eval/study/summary.json").read_text())
        for s in (0, 1)
    ]
    assert arms["fixed"]["clean"]["values"] == [v["clean_acc"] for v in values]
    assert arms["fixed"]["uniformity"]["values"] == [
        v["geometry"]["trained"]["uniformity"] for v in values
    ]
    assert arms["fixed"]["mpc"]["values"] == [v["corruption"]["mpc"] for v in values]
    assert not (folder / "out/study.csv").exists()
    exports = ("--csv", "--latex")
    part = tool("study", *words, "--seeds", "0", "--arms", "simclr", *exports, cwd=folder)
    assert (
        part.returncode == 0
        and json.loads((folder / "out/study.json").read_text())["clips"] == arms
    ), "all is kept"
    assert (folder / "out/study.csv").read_text().startswith("dataset,arm,minus,measure,n,mean")
    assert (folder / "out/study.tex").read_text().count(r"\toprule") == 2
    page_text = (folder / "out/study.html").read_text()
    assert 'href="clips/fixed/seed1/eval/study/report.html"' in page_text
    text = (folder / "out/study.md").read_text()
    assert "Not finished" not in text and "| fixed | 2 | " in text and "linf-4/255" in text
    for name in ("robust", "space", "margins"):
        assert (
            folder / f"out/clips_{name}.png"
        ).stat().st_size > 5000 and f"clips_{name}.png" in text


def test_other_options_are_refused_before_anything_is_trained(page):
    folder = page.parent
    words = ("--cfg", page, "--output-dir", "out", "--seeds", "0")
    assert tool("study", *words, "--arms", "simclr", cwd=folder).returncode == 0
    again = tool("study", *words, "--arms", "simclr,supcon", "optim.lr=0.01", cwd=folder)
    assert (
        again.returncode == 1
        and "holds a run with other options (its values in brackets): optim.lr=0.01 (0.1)"
        in again.stderr
    )
    assert not (folder / "out/clips/supcon").exists() and "Traceback" not in again.stderr
    done = tool("study", *words, "--arms", "simclr", "--dry-run", cwd=folder)
    assert done.returncode == 0 and "temperature" in done.stdout
    done = tool("study", *words, "--dry-run", cwd=folder)
    assert done.stdout.splitlines() == [
        "# clips, supcon, seed 0: out/clips/supcon/seed0",
        "# clips, simclr, seed 0: out/clips/simclr/seed0, finished",
        "# clips, fixed, seed 0: out/clips/fixed/seed0",
    ]
    page.write_text(page.read_text().replace("rule=fixed", "rule=fixd"))
    done = tool("study", *words, "--arms", "simclr", "--dry-run", cwd=folder)
    assert done.returncode == 1 and "rule: unknown name 'fixd'; did you mean 'fixed'" in done.stderr


def test_means_intervals_and_gaps_match_numbers_computed_by_hand(tmp_path):
    study = Study(arms={}, datasets={}, baseline="csl", comparators=["sup", "worse"])
    runs = finished_runs(
        {
            "csl": [0.2, 0.3, 0.4],
            "sup": [0.7, 0.7, 0.7],
            "fnr": [0.5, 0.4, 0.6],
            "worse": [0.1, 0.1, 0.1],
        }
    )
    arms = summarise(study, runs)["d"]
    spread = arms["fnr"].measures["robust linf-0.01"]
    assert spread.mean == pytest.approx(0.5) and spread.std == pytest.approx(0.1)
    assert spread.half == pytest.approx(4.303 * 0.1 / math.sqrt(3)) and arms["fnr"].n == 3
    assert arms["fnr"].gap_closed["sup"] == pytest.approx({"linf-0.01": 50, "linf-0.02": 50})
    assert arms["fnr"].gap_closed["worse"] == {"linf-0.01": None, "linf-0.02": None}
    assert arms["csl"].gap_closed == {} and "sup" not in arms["sup"].gap_closed
    apart = arms["fnr"].difference["robust linf-0.01"]
    assert apart.values == pytest.approx([0.3, 0.1, 0.2]) and arms["csl"].difference == {}, (
        "differences are taken seed by seed"
    )
    assert arms["fnr"].measures["success linf-0.02"].mean == pytest.approx(1 - 0.25 / 0.8)
    assert (
        arms["fnr"].measures["fn_removed first"].mean == 0
        and arms["fnr"].measures["fn_removed last"].mean == 0.25
    )
    assert (
        arms["fnr"].measures["fn_precision last"].mean == pytest.approx(0.5)
        and "fn_precision first" not in arms["fnr"].measures
    )
    alone = summarise(study, [run for run in runs if run.arm.name != "csl"])["d"]["fnr"]
    assert alone.difference == {} and alone.gap_closed == {}


def test_the_report_has_options_warnings_and_tables(tmp_path):
    study = Study(
        arms={"csl": [], "fnr": ["a=b", "c=d"]},
        datasets={},
        baseline="csl",
        comparators=["sup", "worse"],
        common=["e=f", "g=0"],
        options={"d": ["i=j", "g=1"]},
        config_file=Path("configs/study_x.yaml"),
    )
    runs = finished_runs(
        {
            "csl": [0.2, 0.3, 0.4],
            "sup": [0.7, 0.7, 0.7],
            "fnr": [0.5, 0.4, 0.6],
            "worse": [0.1, 0.1, 0.6],
        }
    )
    tables = write_study(study, runs, tmp_path, 3, ["g=h"])
    numbers = json.loads((tmp_path / "study.json").read_text())["d"]
    assert {name: ArmResult.from_json(entry) for name, entry in numbers.items()} == tables["d"]
    assert list(numbers["fnr"])[:2] == ["n", "probe"], "measures stand beside the other keys"
    with pytest.raises(ValueError, match="invalid value for type, expected int @ n"):
        ArmResult.from_json(numbers["fnr"] | {"n": None})
    text = (tmp_path / "study.md").read_text()
    assert text.startswith("# study_x: 12 runs\n\nNot finished: 3 of 15 runs of the study.\n")
    assert "all runs: `e=f`." in text and "Options of this data set: `i=j`." in text, (
        "g is overridden on the command line"
    )
    assert "command line: `g=h`." in text and "| fnr | `a=b` `c=d` |" in text
    assert "50 test videos, pgd-3x1; chance 10.0 %." in text
    assert "Attacked: the linear probe of csl, fnr, worse; the own head of sup." in text
    assert "- a doubt: csl 2, fnr 1" in text
    assert (
        "| fnr | 3 | 90.0 ± 0.0 [0.0] | 80.0 ± 0.0 [0.0] | 50.0 ± 24.8 [10.0] | 25.0 ± 12.4 [5.0]"
        " | - |" in text
    )
    assert (
        "| fnr | 0.0 ± 0.0 [0.0] | 0.0 ± 0.0 [0.0] | 20.0 ± 24.8 [10.0] | 10.0 ± 12.4 [5.0] | - |"
        in text
    )
    assert "| fnr | 0.0 ± 0.0 [0.0] | 25.0 ± 0.0 [0.0] | - | 50.0 ± 24.8 [10.0] | - | - |" in text
    assert "| fnr | sup | 50 | 50 |" in text and "linf-0 " not in text, (
        "a budget of 0 is clean accuracy"
    )
    assert (
        "of worse is above that of csl at no budget" in text
        and "| sup | worse |" not in text
        and "| worse | sup" not in text
    )
    write_study(
        study, finished_runs({"csl": [0.1, 0.4], "sup": [0.5, 0.2], "fnr": [0.2, 0.3]}), tmp_path
    )
    text = (tmp_path / "study.md").read_text()
    assert "| fnr | sup | (0) | (0) |" in text and "worse" not in text.split("## d")[1]
    write_study(study, finished_runs({"csl": [0.2]}), tmp_path)
    text = (tmp_path / "study.md").read_text()
    assert (
        "| csl | 1 | 90.0 | 80.0 | 20.0 | 10.0 | - |" in text
        and "False negatives" not in text
        and "Gap" not in text
    )


def _attacked(runs, arm, threats):
    """Leave only some threats of an arm."""
    for run in runs:
        if run.arm.name == arm:
            curve = run.summary.curve
            run.summary.curve = [point for point in curve if point.threat in threats]


def test_arms_with_other_threats_have_a_report(tmp_path):
    study = Study(arms={}, datasets={}, baseline="csl", comparators=["sup"])
    runs = finished_runs({"fnr": [0.5, 0.6], "csl": [0.2, 0.2], "sup": [0.8, 0.8], "raw": [0.1]})
    _attacked(runs, "csl", ["linf-0", "linf-0.02"])
    _attacked(runs, "raw", ["linf-0"])
    table = write_study(study, runs, tmp_path, extra=("csv", "tex"))["d"]
    assert table["fnr"].gap_closed["sup"] == {
        "linf-0.01": None,
        "linf-0.02": pytest.approx(100 * (0.275 - 0.1) / 0.3),
    }
    assert table["raw"].gap_closed["sup"] == {"linf-0.01": None, "linf-0.02": None}
    text = (tmp_path / "study.md").read_text()
    assert "| arm | comparator | linf-0.01 | linf-0.02 |" in text
    assert "| fnr | sup | - | 58 |" in text and "| raw | sup | - | - |" in text
    assert (tmp_path / "study.html").is_file() and (tmp_path / "d_robust.png").is_file()


def test_an_arm_without_attacks_does_not_say_that_there_is_no_gap(tmp_path):
    study = Study(arms={}, datasets={}, baseline="csl", comparators=["sup"])
    runs = finished_runs({"csl": [0.2, 0.2], "sup": [0.8, 0.8], "raw": [0.1, 0.1]})
    _attacked(runs, "raw", [])
    write_study(study, runs, tmp_path)
    assert "no gap to close" not in (tmp_path / "study.md").read_text()


@pytest.mark.parametrize("zero", ["linf-0", "linf-0.0", "linf-0/255", "l2-0e0"])
def test_a_budget_of_0_has_no_gap_however_it_is_written(zero):
    study = Study(arms={}, datasets={}, baseline="csl", comparators=["sup"])
    runs = finished_runs({"csl": [0.2], "sup": [0.8], "fnr": [0.5]})
    for run in runs:
        first, *others = run.summary.curve
        run.summary.curve = [dataclasses.replace(first, threat=zero), *others]
    gaps = summarise(study, runs)["d"]["fnr"].gap_closed["sup"]
    assert list(gaps) == ["linf-0.01", "linf-0.02"]


def test_a_small_budget_whose_name_ends_like_0_has_a_gap():
    study = Study(arms={}, datasets={}, baseline="csl", comparators=["sup"])
    runs = finished_runs({"csl": [0.2], "sup": [0.8], "fnr": [0.5]})
    for run in runs:
        point = run.summary.curve[1]
        run.summary.curve = [dataclasses.replace(point, threat="linf-1e-0")]
    assert summarise(study, runs)["d"]["fnr"].gap_closed["sup"] == pytest.approx({"linf-1e-0": 50})


def test_a_page_above_the_limit_is_one_line_after_the_other_files(tmp_path, monkeypatch):
    for module in ("study.study_page", "evaluation.report.page"):
        monkeypatch.setattr(f"vidrobust.{module}.LARGEST", 1000)
    study = Study(arms={}, datasets={}, baseline="csl")
    with pytest.raises(UserError, match=r"study\.html: the page would have \d+ bytes") as raised:
        write_study(study, finished_runs({"csl": [0.2]}), tmp_path, extra=("csv",))
    assert "ValueError" not in str(raised.value) and "\n" not in str(raised.value)
    assert (tmp_path / "study.csv").is_file() and (tmp_path / "study.json").is_file()


def _of_several_labels(robust):
    """Return runs of videos with several labels each, which have an average precision alone."""
    runs = finished_runs(robust)
    for run in runs:
        precision = MeanAveragePrecision(run.summary.curve[1].robust_acc, [0.1, 0.9], 50, 3)
        run.summary.average_precision = {"trained_probe": precision}
        run.summary.representation = {}
        run.summary.geometry = None
        run.summary.curve = []
        run.summary.clean_acc = None
        run.summary.suite = None
    return runs


def test_videos_with_several_labels_are_compared_by_average_precision(tmp_path):
    study = Study(arms={}, datasets={}, baseline="csl", comparators=["sup"])
    runs = _of_several_labels({"csl": [0.2, 0.3], "fnr": [0.5, 0.6], "sup": [0.4, 0.4]})
    table = write_study(study, runs, tmp_path, extra=("csv", "tex"))["d"]
    assert table["fnr"].measures["mAP"].mean == pytest.approx(0.55)
    assert table["fnr"].difference["mAP"].values == pytest.approx([0.3, 0.3])
    assert "probe" not in table["fnr"].measures
    text = (tmp_path / "study.md").read_text()
    assert "| arm | seeds | mAP |" in text and "| fnr | 2 | 55.0 ± 63.5 [7.1] |" in text
    page = (tmp_path / "study.html").read_text()
    assert "fnr has the highest mean average precision of the linear probe" in page


def test_a_run_whose_features_are_not_finite_is_in_the_report(tmp_path):
    runs = finished_runs({"csl": [0.2, 0.3], "fnr": [0.5, 0.6]})
    runs[0].summary.geometry = None
    table = write_study(Study(arms={}, datasets={}, baseline="csl"), runs, tmp_path)["d"]
    assert len(table["csl"].measures["alignment"].values) == 1


def test_runs_without_any_accuracy_have_a_report(tmp_path):
    runs = _of_several_labels({"csl": [0.2, 0.3], "fnr": [0.5, 0.6]})
    for run in runs:
        run.summary.average_precision = {}
    write_study(Study(arms={}, datasets={}, baseline="csl"), runs, tmp_path, extra=("csv", "tex"))
    assert "On d, no accuracy is measured." in (tmp_path / "study.html").read_text()


def test_a_gap_is_in_doubt_if_baseline_and_comparator_share_no_seed(tmp_path):
    study = Study(arms={}, datasets={}, baseline="csl", comparators=["sup"])
    runs = finished_runs({"csl": [0.2, 0.2], "sup": [0.6, 0.6], "fnr": [0.4, 0.4]})
    seeds = {"csl": 0, "sup": 1, "fnr": 0}
    runs = [run for run in runs if run.arm.seed == seeds[run.arm.name]]
    write_study(study, runs, tmp_path)
    assert "| fnr | sup | (50) | (50) |" in (tmp_path / "study.md").read_text()


def test_intervals_of_one_seed_and_of_many():
    study = Study(arms={}, datasets={}, baseline="csl")
    one = summarise(study, finished_runs({"csl": [0.2]}))["d"]["csl"].measures["clean"]
    assert one.half is None and one.values == [0.8]
    many = summarise(study, finished_runs({"csl": [0.1, 0.2] * 10}))["d"]["csl"].measures[
        "robust linf-0.01"
    ]
    assert many.half == pytest.approx(
        2.093 * statistics.stdev([0.1, 0.2] * 10) / math.sqrt(20), rel=1e-3
    )


@pytest.mark.parametrize(
    ("freedom", "published"), [(1, 12.706), (14, 2.145), (15, 2.131), (19, 2.093), (60, 2.000)]
)
def test_quantiles_of_students_t_are_the_published_ones(freedom, published):
    assert student_t(freedom) == pytest.approx(published, abs=5e-4)


def test_later_options_replace_earlier_ones_and_runs_are_ordered_by_seed(page):
    study = dataclasses.replace(read_study(page), common=["train.epochs=3", "optim.lr=0.5"])
    study = dataclasses.replace(study, arms={"a": ["optim.lr=0.2"], "b": []})
    runs = plan(study, Path("out"), ["train.epochs=7"], {"clips": "/elsewhere"})
    assert [(r.seed, r.name) for r in runs] == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    assert [r.cfg.optim.lr for r in runs[:2]] == [0.2, 0.5] and runs[0].cfg.train.epochs == 7
    assert runs[2].cfg.seed == 1 and runs[0].cfg.data.root == "/elsewhere"
    assert runs[0].folder == Path("out/clips/a/seed0")
    study = dataclasses.replace(
        study, datasets={"clips": "base.yaml", "more": "base.yaml"}, skip={"more": ["b"]}
    )
    assert [(r.dataset, r.name) for r in plan(study, Path("out"))][:3] == [
        ("clips", "a"),
        ("clips", "b"),
        ("more", "a"),
    ]


def test_a_failing_arm_does_not_stop_the_others(page):
    folder = page.parent
    page.write_text(
        page.read_text().replace("simclr: []", 'simclr: ["method.name=moco", "method.queue=64"]')
    )
    done = tool(
        "study",
        "--cfg",
        page,
        "--output-dir",
        "out",
        "--seeds",
        "0",
        "--arms",
        "simclr,fixed",
        cwd=folder,
    )
    assert (
        done.returncode == 1
        and "1 of 2 runs failed; the first: clips, simclr, seed 0: method.queue=64" in done.stderr
    )
    assert (
        "Traceback" not in done.stderr
        and "Not finished: 5 of 6" in (folder / "out/study.md").read_text()
    )
    assert (folder / "out/clips/fixed/seed0/eval/study/summary.json").is_file()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- a", "a study is a mapping"),
        ("arms: {a: []}", "datasets: must be a mapping"),
        ("arms: {}\ndatasets: {d: p}", "arms: must be a mapping of names, at least one"),
        ("arms: {a: [1]}\ndatasets: {d: p}", "a: must be a list of key=value"),
        ("arms: {a: []}\ndatasets: {d: p}\nbaseline: aa", "no arm 'aa'; did you mean 'a'"),
        ("arms: {a: []}\ndatasets: {d: p}\nskip: {d: [b]}", "no arm 'b'"),
        ("arms: {a: []}\ndatasets: {d: p}\nskip: {e: [a]}", "skip: no data set 'e'"),
        (
            "arms: {a: []}\ndatasets: {d: p}\nskip: {d: a}",
            "skip: must be a mapping of data sets to lists of arms",
        ),
        ("arms: {a: []}\ndatasets: {d: p}\nseeds: [x]", "whole numbers, at least one"),
        ("arms: {a: []}\ndatasets: {tune: p}", "'tune' is the folder of runs that choose options"),
        ("arm: {a: []}", "unknown key 'arm'; did you mean 'arms'"),
        ("arms: [", "study.yaml: "),
    ],
)
def test_invalid_config_files_are_refused(tmp_path, text, reason):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError, match=reason):
        read_study(tmp_path / "study.yaml")


def test_an_arm_in_braces_is_replaced_by_its_run_with_the_same_seed(page):
    study = dataclasses.replace(
        read_study(page), arms={"a": [], "b": ["method.name=distill", "method.teacher={a}"]}
    )
    runs = plan(study, Path("out"))
    assert [r.cfg.method.teacher for r in runs] == [
        "",
        "out/clips/a/seed0",
        "",
        "out/clips/a/seed1",
    ]


def test_a_trained_run_can_be_measured_again_under_another_name(page):
    folder = page.parent
    words = ("--cfg", page, "--output-dir", "out", "--seeds", "0", "--arms", "simclr")
    assert tool("study", *words, cwd=folder).returncode == 0
    kept = {p: p.stat().st_mtime_ns for p in folder.glob("out/clips/simclr/seed0/checkpoints/*.pt")}
    done = tool("study", *words, "eval.name=again", "eval.threats=[linf-0,linf-1/255]", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "not trained again"
    text = (folder / "out/study_again.md").read_text()
    assert "study_again.md" in done.stderr and "clips_margins_again.png" in text
    assert (
        "`eval.name=study`" in (folder / "out/study.md").read_text()
        and "eval.name=study" not in text
    )
    assert (folder / "out/clips_margins_again.png").is_file()
    assert "linf-1/255" in text and "linf-4/255" not in text.split("## clips")[1]
    done = tool("study", *words, "eval.threats=[linf-0,linf-1/255]", cwd=folder)
    assert done.returncode == 1 and "holds a run with other options" in done.stderr


def test_an_empty_figure_is_not_drawn(tmp_path):
    """Without attacks, alignment and uniformity are coloured by clean accuracy."""
    study = Study(arms={"csl": []}, datasets={}, config_file=Path("configs/study_x.yaml"))
    runs = finished_runs({"csl": [0.2, 0.3]})
    for run in runs:
        run.summary.curve = run.summary.curve[:1]
    write_study(study, runs, tmp_path)
    text = (tmp_path / "study.md").read_text()
    assert (
        "(d_space.png)" in text
        and "d_robust" not in text
        and not (tmp_path / "d_robust.png").exists()
    )


def test_an_arm_that_starts_from_another_needs_that_run(page):
    text = page.read_text()
    page.write_text(
        text.replace(
            "arms:\n", 'arms:\n  student: [method.name=distill, "method.teacher={simclr}"]\n'
        )
    )
    done = tool("study", "--cfg", page, "--output-dir", "out", "--arms", "student", cwd=page.parent)
    assert (
        done.returncode == 1 and "student needs the run of simclr with the same seed" in done.stderr
    )
    assert "--arms simclr,student" in done.stderr and not (page.parent / "out").exists()


def test_an_empty_study_is_an_error(page):
    page.write_text(page.read_text() + "skip:\n  clips: [simclr]\n")
    done = tool("study", "--cfg", page, "--output-dir", "out", "--arms", "simclr", cwd=page.parent)
    assert done.returncode == 1 and "nothing to run: " in done.stderr


def test_the_command_line_chooses_a_part_of_a_study(page):
    study = read_study(page)
    part = chosen(study, "", "fixed,simclr", "3")
    assert list(part.arms) == ["simclr", "fixed"] and part.seeds == [3] and part.comparators == []
    for words, reason in (
        (("x", "", ""), "--datasets x: unknown; the study has clips"),
        (("", "", "a"), "--seeds a"),
    ):
        with pytest.raises(UserError, match=reason):
            chosen(study, *words)
    with pytest.raises(UserError, match="--data clip: no such data set; did you mean 'clips'"):
        plan(study, Path("out"), [], {"clip": "x"})
    with pytest.raises(UserError, match="no such study"):
        read_study(page.parent / "none.yaml")


def test_a_study_may_change_another_one(page):
    other = page.parent / "other.yaml"
    other.write_text(
        "_BASE_: study.yaml\nseeds: [7]\narms: {simclr: [], byol: [method.name=byol]}\n"
    )
    with pytest.raises(UserError, match="no arm 'supcon'"):  # a comparator of the base
        read_study(other)
    other.write_text(other.read_text() + "comparators: []\n")
    study, base = read_study(other), read_study(page)
    assert (list(study.arms), study.seeds, study.config_file) == (["simclr", "byol"], [7], other)
    assert (study.common, study.datasets) == (base.common, base.datasets)
    for text, reason in (
        ("_BASE_: none.yaml\n", "_BASE_=none.yaml: no such file beside it"),
        ("_BASE_: other.yaml\n", "has a base itself; name that one"),
    ):
        (page.parent / "third.yaml").write_text(text)
        with pytest.raises(UserError, match=reason):
            read_study(page.parent / "third.yaml")


@pytest.mark.parametrize("path", sorted(REPO.glob("configs/study_*.yaml")), ids=lambda p: p.stem)
def test_every_config_file_has_matched_runs_and_states_its_command(path):
    runs = plan(read_study(path), Path("out"))
    if path.stem == "study_susceptibility":  # Gupta et al. 2022 and ours: each rule
        rules = [
            {r.cfg.method.false_negatives.rule for r in runs if r.dataset == d}
            for d in ("cifar10", "ucf101")
        ]
        assert rules == [{"none", *RULES} - {"sibling"}, {"none", *RULES}]
    assert (
        len(runs) >= 50
        and f"python tools/study.py --cfg configs/{path.name}"
        in path.read_text().split("\nseeds")[0]
    )
    for dataset in {run.dataset for run in runs}:
        dataset_runs = [r for r in runs if r.dataset == dataset]
        matched = {
            (r.cfg.train.epochs, r.cfg.train.batch_size, r.cfg.model.backbone) for r in dataset_runs
        }
        assert len(matched) == 1, "all arms have the same budget of training"
        augmented = {
            str(r.cfg.augment) for r in dataset_runs if r.name != "deacl"
        }  # deacl's recipe only crops and flips
        assert len(augmented) == 1
