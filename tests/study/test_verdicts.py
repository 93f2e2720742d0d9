"""Claims of a study are tested by its runs, video by video."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.helpers import tiny, tiny_ucf101
from tests.study.helpers import finished_runs
from vidrobust import config
from vidrobust.study import Study, finished, plan, read_study, run_arm, write_study
from vidrobust.study.arm_table import measures_by_seed
from vidrobust.study.claims import Claim
from vidrobust.study.outcomes import video_measure
from vidrobust.study.paired_test import seeds_needed
from vidrobust.study.verdicts import DID_NOT, HELD, UNDECIDED, verdict_lines, verdicts
from vidrobust.utils.errors import UserError

CLAIM = Claim(
    "susceptibility",
    "Gupta et al. 2022",
    "SimCLR is less robust",
    "simclr",
    ["robust linf-1"],
    "below",
    "supcon",
)
VIDEOS = 400


def study_of(*claims, datasets=("d",), seeds=(0, 1, 2, 3)):
    names = dict.fromkeys(datasets, "base.yaml")
    return Study({"simclr": [], "supcon": []}, names, seeds, baseline="simclr", claims=claims)


def runs_with(tmp_path, levels, datasets=("d",), seeds=4, **changes):
    """Runs whose videos are right with given probabilities: (clean, attacked) of each arm.

    levels: arm -> (clean, attacked), or data set -> arm -> the same.
    changes: options of the runs of an arm.
    """
    rng = np.random.default_rng(0)
    runs = []
    for dataset in datasets:
        here = levels.get(dataset, levels)
        for run in finished_runs({name: [0.5] * seeds for name in here}):
            folder = tmp_path / dataset / run.arm.name / f"seed{run.arm.seed}"
            (folder / "eval/pgd").mkdir(parents=True)
            clean, robust = here[run.arm.name]
            rows = []
            for number in range(VIDEOS):
                draw = rng.random()
                rows.append(
                    {
                        "uid": f"{number}.avi",
                        "label": 1,
                        "clean_pred": int(draw < clean),
                        "threat": "linf-1",
                        "robust": bool(draw < robust),
                    }
                )
            rng.shuffle(rows)  # runs may list their videos in another order
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "eval/pgd/results.jsonl").write_text(text)
            words = [*changes.get(run.arm.name, []), f"seed={run.arm.seed}"]
            (folder / "config.yaml").write_text(config.to_yaml(config.loads("", words)))
            arm = replace(run.arm, dataset=dataset, folder=folder)
            runs.append(replace(run, arm=arm))
    return runs


def test_a_claim_that_holds_one_that_does_not_and_one_that_is_undecided(tmp_path):
    runs = runs_with(tmp_path, {"simclr": (0.8, 0.4), "supcon": (0.8, 0.6)})
    opposite = replace(CLAIM, name="opposite", expected="above")
    (held, not_held) = verdicts(study_of(CLAIM, opposite), runs)
    assert (held.verdict, held.reason, held.prediction) == (
        HELD,
        "",
        "robust linf-1: simclr below supcon",
    )
    assert held.test.mean == pytest.approx(-0.2, abs=0.05) and held.test.videos == VIDEOS
    assert len(held.test.values) == 4
    assert held.p == pytest.approx(2 * held.test.p)  # two tests
    assert (not_held.verdict, not_held.reason) == (DID_NOT, "the difference is the opposite")


def test_an_undecided_claim_says_how_many_seeds_would_decide(tmp_path):
    runs = runs_with(tmp_path, {"simclr": (0.8, 0.5), "supcon": (0.8, 0.51)}, seeds=2)
    (row,) = verdicts(study_of(CLAIM), runs)
    assert row.verdict == UNDECIDED and row.test.half > abs(row.test.mean)
    assert "seeds find a difference of this size" in row.reason or "no number" in row.reason
    # a difference that counts and is larger than the measured one
    (row,) = verdicts(study_of(replace(CLAIM, relevant=0.09)), runs)
    needed = seeds_needed(0.09, row.test.spread, row.test.of_videos, VIDEOS)
    assert row.verdict == UNDECIDED and needed != row.test.seeds_needed
    assert row.reason == f"{needed} seeds find a difference of 9.0 points with 80 % power"
    # the interval excludes a difference of half of all videos
    (row,) = verdicts(study_of(replace(CLAIM, relevant=0.5)), runs)
    assert (row.verdict, row.reason) == (DID_NOT, "a difference of 50.0 points is excluded")


def test_a_claim_that_holds_by_accuracy_alone_says_so(tmp_path):
    beyond = replace(CLAIM, beyond="kept linf-1")
    by_accuracy = runs_with(tmp_path / "a", {"simclr": (0.5, 0.25), "supcon": (0.9, 0.45)})
    (row,) = verdicts(study_of(beyond), by_accuracy)
    assert row.verdict == HELD and row.reason.startswith("by accuracy alone: kept linf-1 differs")
    more = runs_with(tmp_path / "b", {"simclr": (0.9, 0.25), "supcon": (0.9, 0.45)})
    (row,) = verdicts(study_of(beyond), more)
    assert (row.verdict, row.reason) == (HELD, "")


def test_a_gain_over_random_weights_needs_no_other_arm(tmp_path):
    claim = replace(CLAIM, against="", measures=["gain probe"], expected="above")
    runs = runs_with(tmp_path, {"simclr": (0.8, 0.4)})
    rng = np.random.default_rng(1)
    for run in runs:
        rows = []
        for number in range(VIDEOS):
            trained, random = (rng.random(2) < (0.8, 0.5)).astype(int).tolist()
            row = {"uid": f"{number}", "label": 1}
            rows.append(row | {"trained_probe": trained, "random_probe": random})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (run.arm.folder / "eval/pgd/predictions.jsonl").write_text(text)
    (row,) = verdicts(study_of(claim), runs)
    assert row.verdict == HELD and row.prediction == "gain probe: simclr above 0"
    assert row.test.mean == pytest.approx(0.3, abs=0.05) and row.notes == ()
    (row,) = verdicts(study_of(replace(claim, measures=["margin_mean"])), runs)
    assert row.test.mean == pytest.approx(0.1)


def test_a_slope_over_a_dial(tmp_path):
    """The gap grows with the fraction of false negatives: by 0.4 from 0.1 to 0.5."""
    datasets = ("few", "some", "many")
    levels = {
        "few": {"simclr": (0.9, 0.6), "supcon": (0.9, 0.6)},
        "some": {"simclr": (0.9, 0.5), "supcon": (0.9, 0.7)},
        "many": {"simclr": (0.9, 0.4), "supcon": (0.9, 0.8)},
    }
    runs = runs_with(tmp_path, levels, datasets)
    dial = {"few": 0.1, "some": 0.3, "many": 0.5}
    (row,) = verdicts(study_of(replace(CLAIM, dial=dial), datasets=datasets), runs)
    assert row.verdict == HELD and row.test.mean == pytest.approx(-1.0, abs=0.15)
    assert row.prediction == "slope of robust linf-1 over 0.1 to 0.5: simclr below supcon"
    assert row.dataset == "few, some, many" and row.test.videos == 3 * VIDEOS
    # the slope of a line through three values per seed
    by_seed = []
    for seed in range(4):
        gaps = []
        for dataset in datasets:
            shares = []
            for arm in ("simclr", "supcon"):
                file = tmp_path / dataset / arm / f"seed{seed}/eval/pgd/results.jsonl"
                rows = [json.loads(line) for line in file.read_text().splitlines()]
                shares.append(np.mean([each["robust"] for each in rows]))
            gaps.append(shares[0] - shares[1])
        by_seed.append(np.polyfit(list(dial.values()), gaps, 1)[0])
    assert row.test.values == pytest.approx(by_seed)


@pytest.mark.usefixtures("whole_reports")
def test_the_report_has_verdicts_and_pictures_of_dials_and_distances(tmp_path):
    levels = {"simclr": (0.9, 0.5), "supcon": (0.9, 0.7)}
    runs = runs_with(tmp_path / "runs", levels, ("few", "many"), seeds=2)
    for run in runs:
        run.summary.geometry["trained"].class_distances = [[0.1, 0.5], [0.5, None]]
    dial = replace(CLAIM, dial={"few": 0.1, "many": 0.5}, dial_name="false negatives")
    dial = replace(dial, measures=["robust linf-0.01"])
    study = study_of(dial, datasets=("few", "many"))
    write_study(study, runs, tmp_path)
    text = (tmp_path / "study.md").read_text()
    for picture in ("dial_0_0.png", "few_distances.png", "many_distances.png"):
        assert picture in text and (tmp_path / picture).stat().st_size > 5000
    page = (tmp_path / "study.html").read_text()
    assert "SimCLR is less robust" in page and "slope of robust linf-0.01" in page
    (entry,) = json.loads((tmp_path / "verdicts.json").read_text())
    assert entry["claim"] == "susceptibility" and entry["dataset"] == "few, many"
    assert "| SimCLR is less robust | undecided (seeds in common: 0" in text


def test_missing_seeds_other_options_and_shortfalls_are_noted(tmp_path):
    levels = {"simclr": (0.8, 0.4), "supcon": (0.8, 0.6)}
    runs = runs_with(tmp_path, levels, supcon=["optim.lr=0.7", "method.temperature=0.3"])
    runs = [r for r in runs if (r.arm.name, r.arm.seed) != ("supcon", 3)]
    runs[0] = replace(runs[0], shortfalls=("stopped at 50 % of 60 %",))
    (row,) = verdicts(study_of(CLAIM), runs)
    assert len(row.test.values) == 3
    assert row.notes[:2] == (
        "d, simclr, seed 0: stopped at 50 % of 60 %",
        "d, supcon: no result of seeds 3",
    )
    assert "optim.lr=" in row.notes[2] and "(0.7)" in row.notes[2]
    assert "temperature" not in row.notes[2] and "seed=" not in row.notes[2]
    text = "\n".join(verdict_lines([row]))
    assert "no result of seeds 3" in text and "| 3 |" in text


def test_without_common_seeds_there_is_no_verdict(tmp_path):
    runs = runs_with(tmp_path, {"simclr": (0.8, 0.4), "supcon": (0.8, 0.6)}, seeds=1)
    (row,) = verdicts(study_of(CLAIM), runs)
    assert (row.verdict, row.reason) == (UNDECIDED, "seeds in common: 1, at least 2 are needed")
    (row,) = verdicts(study_of(CLAIM), [])
    assert row.test is None and "| - | 0 | - |" in "\n".join(verdict_lines([row]))


def test_a_measure_that_is_not_made_of_videos_is_tested_over_seeds(tmp_path):
    runs = runs_with(tmp_path, {"simclr": (0.8, 0.4), "supcon": (0.8, 0.6)})
    for run in runs:
        lower = run.arm.name == "simclr"
        run.summary.geometry["trained"].margin_mean = 0.1 * (2 - lower) + 0.001 * run.arm.seed
    runs = [replace(run, summary=run.summary) for run in runs]
    assert video_measure("margin_mean") is None
    (row,) = verdicts(study_of(replace(CLAIM, measures=["margin_mean"])), runs)
    assert row.verdict in (HELD, UNDECIDED) and row.test.videos == 50


def test_corrupted_and_probed_videos(tmp_path):
    rows = [
        {"uid": "a", "label": 1, "kind": "corruption", "name": "clean", "predicted": [1]},
        {"uid": "a", "label": 1, "kind": "corruption", "name": "fog", "predicted": [1, 0]},
        {"uid": "a", "label": 1, "kind": "corruption", "name": "snow", "predicted": [1, 1]},
        {"uid": "b", "label": 2, "kind": "corruption", "name": "clean", "predicted": []},
        {"uid": "b", "label": 2, "kind": "corruption", "name": "fog", "predicted": []},
    ]
    (tmp_path / "corruptions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert video_measure("mpc").read(tmp_path) == {"a": [0.75, 1.0], "b": [0.0, 0.0]}
    probed = [{"uid": "a", "label": 1, "trained_probe": 1}, {"uid": "b", "label": 1}]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in probed))
    assert video_measure("probe").read(tmp_path) == {"a": [1.0], "b": [0.0]}
    assert video_measure("clean").read(tmp_path) == {}


PAGE = """
datasets: {d: base.yaml, e: base.yaml}
arms: {simclr: [], supcon: []}
claims:
  - name: susceptibility
    source: Gupta et al. 2022
    says: SimCLR is less robust
    arm: simclr
    against: supcon
    measures: [robust linf-1]
    expected: below
"""


@pytest.mark.parametrize(
    "old,new,message",
    [
        ("expected: below", "expected: lower", "expected=lower: must be above or below"),
        ("arm: simclr", "arm: simclrr", "no arm 'simclrr'; did you mean 'simclr'"),
        ("measures: [robust linf-1]", "measures: clean", "measures=clean: must be a list"),
        ("    says: SimCLR is less robust\n", "", "susceptibility: says is missing"),
        ("expected: below", "expected: below\n    dial: {d: 1}", "dial={'d': 1}: must be"),
        ("expected: below", "expected: below\n    dial: {d: 1, f: 2}", "claims: no data set 'f'"),
        ("expected: below", "expected: below\n    relevant: -1", "relevant=-1: must be a number"),
        ("expected: below", "expected: below\n    sorce: x", "unknown key 'sorce'; did you mean"),
    ],
)
def test_a_claim_that_does_not_fit_is_refused(tmp_path, old, new, message):
    path = tmp_path / "study.yaml"
    path.write_text(PAGE)
    assert read_study(path).claims == [CLAIM]
    path.write_text(PAGE.replace(old, new))
    with pytest.raises(UserError) as error:
        read_study(path)
    assert message in str(error.value)


def test_smallest_perturbations_and_margins(tmp_path):
    sizes = {"a": 0.1, "b": 0.4, "c": 0.2, "wrong": 0.0, "holds": None}
    rows = [
        {
            "uid": uid,
            "label": 1,
            "clean_pred": 0 if uid == "wrong" else 1,
            "threat": "l2-1",
            "robust": size is None,
            "measured": size,
        }
        for uid, size in sizes.items()
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    margins = {"a": 0.1, "b": 0.8, "c": -0.1, "wrong": 0.5, "holds": None}
    lines = [{"uid": uid, "label": 1, "margin": margin} for uid, margin in margins.items()]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    smallest, per_margin = (video_measure(f"{kind} l2-1") for kind in ("smallest", "per_margin"))
    found = smallest.read(tmp_path)
    assert found["wrong"] == [0.0, 0.0] and found["holds"] == [float("inf"), 1.0]
    every = np.ones((1, 5))
    # of 0.1, 0.2, 0.4 and a larger one; and of 1 and 0.5
    assert smallest.reduce(every, np.array(list(found.values())))[0] == 0.2
    quotients = per_margin.read(tmp_path)
    assert quotients["a"] == [pytest.approx(1.0), 1.0] and quotients["c"][1] == 0
    assert per_margin.reduce(every, np.array(list(quotients.values())))[0] == pytest.approx(0.5)
    # drawn more often, a video counts more often
    weights = np.array([[1, 5, 1, 1, 0]])
    assert smallest.reduce(weights, np.array(list(found.values())))[0] == 0.4
    assert np.isnan(smallest.reduce(every, np.array([[0.1, 0.0]] * 5))[0])


def test_videos_as_views_and_of_another_data_set(tmp_path):
    views = [
        {"uid": "a", "label": 1, "name": "conflict", "predicted": 1, "other": 2},
        {"uid": "b", "label": 1, "name": "conflict", "predicted": 2, "other": 2},
        {"uid": "c", "label": 1, "name": "conflict", "predicted": 3, "other": 2},
        {"uid": "d", "label": 1, "name": "conflict", "predicted": 1, "other": 1},
        {"uid": "a", "label": 1, "name": "patch", "predicted": 0, "other": None},
        {"uid": "b", "label": 1, "name": "patch", "predicted": None, "other": None},
    ]
    (tmp_path / "bias.jsonl").write_text("".join(json.dumps(r) + "\n" for r in views))
    assert video_measure("acc patch").read(tmp_path) == {"a": [0.0], "b": [0.0]}
    acc, bias = (video_measure(f"{kind} conflict") for kind in ("acc", "bias"))
    assert acc.read(tmp_path) == {"a": [1.0], "b": [0.0], "c": [0.0], "d": [1.0]}
    cues = bias.read(tmp_path)
    # of two that follow a cue one follows the first; with no second cue there is no bias
    assert bias.reduce(np.ones((1, 4)), np.array(list(cues.values())))[0] == 0.5
    shift = [
        {"uid": "a", "label": 1, "of": "own", "predicted": 1},
        {"uid": "a", "label": 1, "of": "other", "predicted": 0},
    ]
    (tmp_path / "shift.jsonl").write_text("".join(json.dumps(r) + "\n" for r in shift))
    assert video_measure("shift").read(tmp_path) == {"a": [0.0]}


def test_measures_of_videos_are_those_of_the_summary(tmp_path):
    """Train and measure a run for it."""
    root = tiny_ucf101(tmp_path / "data")
    words = [
        f"data.root={root}",
        "eval.threats=[linf-0,linf-1/255,linf-8/255]",
        "eval.corruption.names=[contrast,fog]",
        "eval.corruption.severities=[1,3]",
        "eval.bias=[patch,shuffle,swapped]",
        "eval.shift.name=ucf101",
        f"eval.shift.root={tiny_ucf101(tmp_path / 'other')}",
        "eval.name=study",
    ]
    (tmp_path / "base.yaml").write_text(config.to_yaml(config.loads("", tiny(*words))))
    (tmp_path / "study.yaml").write_text("seeds: [0]\ndatasets: {c: base.yaml}\narms: {a: []}\n")
    (arm,) = plan(read_study(tmp_path / "study.yaml"), tmp_path / "out")
    run_arm(arm)
    (run,) = finished([arm])
    (measures,) = measures_by_seed([run], "c")["a"].values()
    compared = set()
    for name, value in measures.items():
        kind = video_measure(name)
        if kind is not None and value is not None:
            numbers = np.array(list(kind.read(arm.folder / "eval/study").values()))
            found = kind.reduce(np.ones((1, len(numbers))), numbers)[0]
            assert found == pytest.approx(value), name
            compared.add(name.split()[0])
    assert {"probe", "clean", "robust", "kept", "mpc", "rpc", "acc", "shift"} <= compared
