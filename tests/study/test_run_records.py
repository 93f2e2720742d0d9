"""A file of records takes what a study has measured to another machine, without weights."""

import json
import math
import shutil

import pytest

from tests.helpers import tool
from tests.study.helpers import study_page
from vidrobust import config
from vidrobust.cli.study_results import recorded_results
from vidrobust.study import finished, plan, read_study
from vidrobust.study.outcome_columns import packed, unpacked
from vidrobust.study.outcomes import video_measure
from vidrobust.study.run_records import read_records, write_records
from vidrobust.study.verdicts import verdicts
from vidrobust.utils.errors import UserError

PAGE = """
seeds: [0, 1]
datasets: {clips: base.yaml}
common:
  - train.epochs=1
  - eval.name=study
  - "eval.threats=[linf-0,linf-4/255]"
  - eval.corruption.names=[contrast]
  - eval.corruption.severities=[3]
baseline: simclr
arms:
  simclr: []
  supcon: [method.name=supcon]
  tuned: ["model.weights={simclr}/backbone.pt"]
claims:
  - name: robust
    source: a paper
    says: one is less robust
    arm: simclr
    against: supcon
    measures: [robust linf-4/255, kept linf-4/255, mpc, rpc, clean, probe, gain knn, radius]
    expected: below
"""


@pytest.fixture
def page(tmp_path):
    return study_page(tmp_path, PAGE)


def study(page, out, *words):
    records = ["--records", page.parent / "records.jsonl"]
    return tool("study", "--cfg", page, "--output-dir", out, *records, *words, cwd=page.parent)


@pytest.mark.parametrize(
    "numbers",
    [
        {"b": [1.0, 0.0], "a": [0.0, 0.0], "c": [1.0, 1.0]},
        {f"v{place}": [place / 7] for place in range(256)},
        {f"v{place}": [place / 7] for place in range(257)},
        {f"v{place}": [float(place % 3)] for place in range(101)},
        {"a": [1.0], "b": [1.0]},
        {"a": [math.inf, 0.1], "b": [1 / 3, 0.0]},
        {f"v{place}": [math.inf if place % 2 else place / 7, 1.0] for place in range(999)},
        {"naïve.avi": [0.5]},
    ],
    ids=[
        "bits",
        "256 values",
        "257 values",
        "3 values",
        "one value",
        "infinity",
        "many and infinity",
        "not ASCII",
    ],
)
def test_numbers_of_videos_are_the_same_after_json(numbers):
    name, uids, column = packed(numbers)
    content = json.loads(json.dumps({"videos": {name: uids}, "columns": {"x": column}}))
    assert unpacked(content, "x") == numbers
    assert unpacked(content, "y") == {}


def test_verdicts_are_the_same_from_records_and_runs_are_not_repeated(page):
    folder = page.parent
    done = study(page, "here", "--arms", "simclr,supcon")
    assert done.returncode == 0, done.stderr
    text = (folder / "records.jsonl").read_text()
    assert str(folder) not in text and "/data" not in text
    rows = [json.loads(line) for line in text.splitlines()]
    assert sorted(row["run"] for row in rows if "run" in row) == [
        f"clips/{arm}/seed{seed}" for arm in ("simclr", "supcon") for seed in (0, 1)
    ]
    assert len([row for row in rows if "videos" in row]) == 1  # all classify the same ones

    # another machine has only the file, and the next seed
    shutil.move(folder / "here", folder / "elsewhere")
    told = study(page, "there", "--arms", "simclr,supcon", "--seeds", "0,1,2")
    assert told.returncode == 0, told.stderr
    assert not list(folder.glob("there/clips/*/seed0/checkpoints"))
    assert not list(folder.glob("there/clips/*/seed0/eval/study/results.jsonl"))
    assert len(list(folder.glob("there/clips/*/seed2/checkpoints"))) == 2
    assert (folder / "records.jsonl").read_text().startswith(text.rstrip("\n"))
    assert len((folder / "records.jsonl").read_text().splitlines()) == len(rows) + 2

    both = []
    for name in ("elsewhere", "there"):
        runs = finished(plan(read_study(page), folder / name))
        assert len(runs) == 4
        both.append((verdicts(read_study(page), runs), [run.removal for run in runs]))
    assert both[0] == both[1]
    assert [row.test is not None for row in both[0][0]] == [True] * 8
    # packed again, nothing changes
    before = (folder / "records.jsonl").read_text()
    write_records(folder / "records.jsonl", folder / "there")
    assert (folder / "records.jsonl").read_text() == before


def test_a_run_without_its_weights_is_neither_a_teacher_nor_measured_again(page):
    folder = page.parent
    assert study(page, "here", "--arms", "simclr", "--seeds", "0").returncode == 0
    student = study(page, "there", "--arms", "simclr,tuned", "--seeds", "0")
    assert student.returncode == 1
    assert "there/clips/simclr/seed0 was measured on another machine, and its" in student.stderr
    # it fails alone, and what there is can be read
    both = study(page, "there", "--seeds", "0")
    assert both.returncode == 1 and "1 of 3 runs failed" in both.stderr
    assert list(folder.glob("there/clips/supcon/seed0/checkpoints"))
    said = study(page, "there", "--verdicts")
    assert said.returncode == 0 and "one is less robust" in said.stdout
    shutil.rmtree(folder / "there/clips/supcon")
    # the remedy of the message
    shutil.rmtree(folder / "there/clips/simclr")
    plain = ["--cfg", page, "--output-dir", "there", "--arms", "simclr", "--seeds", "0"]
    assert tool("study", *plain, cwd=folder).returncode == 0
    student = study(page, "there", "--arms", "simclr,tuned", "--seeds", "0")
    assert student.returncode == 0, student.stderr
    shutil.rmtree(folder / "there")
    again = study(page, "there", "--arms", "simclr", "--seeds", "0", "eval.name=more")
    assert again.returncode == 1 and "delete the folder and run it once without" in again.stderr
    assert not list(folder.glob("there/clips/simclr/seed0/checkpoints"))
    # a student finds its teacher's folder wherever the study is
    shutil.rmtree(folder / "there")
    assert study(page, "here", "--arms", "simclr,tuned", "--seeds", "0").returncode == 0
    assert '"model.weights' not in (folder / "records.jsonl").read_text()
    moved = study(page, "there", "--arms", "simclr,tuned", "--seeds", "0")
    assert moved.returncode == 0, moved.stderr
    assert not list(folder.glob("there/clips/*/seed0/checkpoints"))


def test_runs_with_other_options_are_refused(page):
    assert study(page, "here", "--arms", "simclr", "--seeds", "0").returncode == 0
    words = ("--arms", "simclr", "--seeds", "0", "optim.lr=0.07")
    refused = study(page, "there", *words)
    assert refused.returncode == 1 and "optim.lr=0.07 (0.1)" in refused.stderr
    plain = ["--cfg", page, "--output-dir", "other", *words]
    assert tool("study", *plain, cwd=page.parent).returncode == 0
    mixed = study(page, "other", *words)
    assert mixed.returncode == 1 and "Traceback" not in mixed.stderr
    assert "with other options than" in mixed.stderr and "another --records" in mixed.stderr


def test_a_copy_does_not_undo_what_another_machine_has_measured_since(page):
    folder = page.parent
    one = ("--arms", "simclr", "--seeds", "0")
    assert study(page, "here", *one).returncode == 0
    assert study(page, "there", *one).returncode == 0
    summary = folder / "here/clips/simclr/seed0/eval/study/summary.json"
    content = json.loads(summary.read_text())
    summary.write_text(json.dumps(content | {"clean_acc": 0.125}))
    assert study(page, "here", *one, "--report-only").returncode == 0
    # the copy is written while the other machine writes: nothing of it gets into the file
    write_records(folder / "records.jsonl", folder / "there")
    assert study(page, "there", *one, "--report-only").returncode == 0
    assert json.loads((folder / "there/study.json").read_text())["clips"]["simclr"]["clean"][
        "values"
    ] == [0.125]
    assert '\\"clean_acc\\": 0.125' in (folder / "records.jsonl").read_text()


def test_a_run_that_has_begun_here_is_left_alone(page):
    folder = page.parent
    one = ("--arms", "simclr", "--seeds", "0")
    assert study(page, "here", *one).returncode == 0
    shutil.copytree(folder / "here", folder / "begun")
    run = folder / "begun/clips/simclr/seed0"
    shutil.rmtree(run / "eval")
    (run / "metrics.jsonl").write_text("")
    read_records(folder / "records.jsonl", folder / "begun")
    assert (run / "metrics.jsonl").read_text() == "" and not (run / "eval").exists()
    # but not one whose evaluation would be another one
    cfg = config.load(run / "config.yaml", ["eval.threats=[linf-1/255]"])
    (run / "config.yaml").write_text(config.to_yaml(cfg))
    with pytest.raises(UserError, match="with other options than"):
        read_records(folder / "records.jsonl", folder / "begun")


def test_names_of_files_are_relative_to_the_data(page):
    folder = page.parent
    one = ("--arms", "simclr", "--seeds", "0")
    assert study(page, "here", *one).returncode == 0
    summary = folder / "here/clips/simclr/seed0/eval/study/summary.json"
    bad = f"{folder}/data/videos/a.avi"
    content = json.loads(summary.read_text()) | {"failed": [bad], "warnings": [f"{bad}: is cut"]}
    summary.write_text(json.dumps(content))
    write_records(folder / "records.jsonl", folder / "here")
    text = (folder / "records.jsonl").read_text()
    assert str(folder) not in text
    assert '\\"failed\\": [\\"videos/a.avi\\"]' in text and "videos/a.avi: is cut" in text


def test_the_docs_refuse_records_of_other_options(page):
    folder = page.parent
    (folder / "configs/study").mkdir(parents=True)
    for name in ("study.yaml", "base.yaml"):
        shutil.copy(folder / name, folder / "configs/study" / name)
    assert study(page, "here", "--arms", "simclr,supcon", "optim.lr=0.07").returncode == 0
    (folder / "docs/results/records").mkdir(parents=True)
    shutil.copy(folder / "records.jsonl", folder / "docs/results/records/study.jsonl")
    with pytest.raises(UserError, match=r"optim.lr=0.1 \(0.07\); the docs would have"):
        recorded_results(folder, "study", [])
    content = recorded_results(folder, "study", ["optim.lr=0.07"])
    assert content["overrides"] == ["optim.lr=0.07"]
    assert [row[:2] for row in content["arms clips"]["rows"]] == [["simclr", 2], ["supcon", 2]]


def test_a_file_that_cannot_be_written_stops_no_run(page):
    (page.parent / "records.jsonl").mkdir()
    done = study(page, "here", "--arms", "simclr", "--seeds", "0")
    assert done.returncode == 0 and "records.jsonl could not be written" in done.stderr
    assert (page.parent / "here/study.md").is_file()


@pytest.mark.parametrize(
    "text", ["seeds: [0]\n", '{"run": "clips"\n', "<<<<<<< HEAD\n", '{"uid": "a.avi"}\n', "[1]\n"]
)
def test_no_other_file_is_overwritten(tmp_path, text):
    path = tmp_path / "records.jsonl"
    path.write_text(text)
    for each in (write_records, read_records):
        with pytest.raises(UserError, match=r"holds no records of a study \(line 1\)"):
            each(path, tmp_path / "out")
    assert path.read_text() == text


def test_choices_of_two_machines_are_merged(tmp_path):
    path = tmp_path / "records.jsonl"
    for arm in ("simclr", "supcon"):
        (tmp_path / arm).mkdir()
        (tmp_path / arm / "tuning.json").write_text(json.dumps({"clips": {arm: {"options": {}}}}))
        write_records(path, tmp_path / arm)
    read_records(path, tmp_path / "simclr")
    content = json.loads((tmp_path / "simclr/tuning.json").read_text())
    assert list(content["clips"]) == ["simclr", "supcon"]


@pytest.mark.parametrize(
    "row",
    [
        {"run": "../clips", "evaluation": "study", "files": {}, "columns": {}},
        {"run": "clips", "evaluation": "study", "files": {"/etc/x": ""}, "columns": {}},
        {"run": "clips", "evaluation": "study", "files": {}, "columns": {"clean": {}}},
        {"run": 3},
        {"run": "clips", "evaluation": "../../x", "files": {}, "columns": {}},
        {"run": "clips", "files": {}},
        {"videos": "x"},
        {"videos": ["x"], "uids": []},
    ],
    ids=[
        *("outside", "absolute", "no videos", "no files", "evaluation outside"),
        *("no evaluation", "no uids", "no name"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, row):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"records.jsonl: holds no records of a study"):
        read_records(path, tmp_path / "out")
    assert not (tmp_path / "clips").exists()


def test_choices_travel_and_take_the_place_of_the_runs_that_decided(page):
    folder = page.parent
    page.write_text(
        PAGE
        + """
tune:
  options: [data.validation=0.5, "eval.threats=[]", "eval.corruption.names=[]"]
  grid:
    simclr: {method.temperature: [0.1, 0.2]}
    supcon: {as: simclr, optim.lr: [0.1, 0.2]}
"""
    )
    refused = study(page, "here", "--arms", "simclr,tuned", "--seeds", "0")
    assert refused.returncode == 1 and "options of simclr are chosen on held-out" in refused.stderr
    done = study(page, "here", "--tune", "--arms", "simclr")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert [row["run"] for row in rows] == ["tuning.json"]
    # of a choice that is under way, its runs travel, without what they did on each video
    (folder / "here/tuning.json").unlink()
    write_records(folder / "half.jsonl", folder / "here")
    rows = [json.loads(line) for line in (folder / "half.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["columns"] == {} for row in rows)
    shutil.copy(folder / "half.jsonl", folder / "records.jsonl")
    told = study(page, "there", "--tune", "--arms", "simclr")
    assert told.returncode == 0 and not list(folder.glob("there/tune/*/*/*/checkpoints"))
    assert (folder / "there/tuning.json").is_file()
    assert [json.loads(line)["run"] for line in open(folder / "records.jsonl")] == ["tuning.json"]
    # an arm more: what was chosen before is neither lost nor run again
    chosen = json.loads((folder / "there/tuning.json").read_text())["clips"]["simclr"]
    shutil.rmtree(folder / "there/tune")
    more = study(page, "there", "--tune")
    assert more.returncode == 0, more.stderr
    assert [path.name for path in (folder / "there/tune/clips").iterdir()] == ["supcon"]
    content = json.loads((folder / "there/tuning.json").read_text())["clips"]
    assert content["simclr"] == chosen and set(content) == {"simclr", "supcon"}


@pytest.mark.parametrize("name", ["robust", "clean linf-1/255", "radius", "gain", "probe x"])
def test_names_that_are_no_measures_of_videos(name):
    assert video_measure(name) is None
