"""Files that the revision before the layout of issue 26 wrote are read, resumed and measured.

tests/files/before_layout was written by revision 6c185bf: a data set, its manifest, a run of CLAE
with an evaluation of attacks and one of corruptions, and a study.
"""

import json
import os
import shutil

import pytest

from tests.helpers import REPO, tool
from vidrobust import config
from vidrobust.data import build_records
from vidrobust.data.scan import read_manifest

CORRUPTED = [
    "eval.threats=[linf-0]",
    "eval.corruption.names=[contrast]",
    "eval.corruption.severities=[3]",
]


@pytest.fixture
def place(tmp_path):
    """A copy, whose videos are as old as the manifest says."""
    shutil.copytree(REPO / "tests/files/before_layout", tmp_path / "top")
    top = tmp_path / "top"
    for line in (top / "data/manifest.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "mtime_ns" in row:
            os.utime(top / "data" / row["path"], ns=(row["mtime_ns"],) * 2)
    return top


def files(folder, *names):
    return {name: (folder / name).read_bytes() for name in names}


def test_its_manifest_is_read(place, caplog):
    rows, _ = read_manifest(place / "data/manifest.jsonl")
    assert len(rows) == 12
    words = ["data.name=ucf101", f"data.root={place / 'data'}"]
    cfg = config.loads("", [*words, f"data.manifest={place / 'data/manifest.jsonl'}"])
    records, classes = build_records(cfg.data, "train")
    assert [record.frames for record in records] == [20] * 8
    assert classes == ["Alpha", "Beta"]
    assert not caplog.records


def test_its_run_is_resumed(place):
    words = ["--cfg", "run/config.yaml", "--output-dir", "run", "--resume", "train.epochs=3"]
    done = tool("train_net", *words, "eval.enabled=false", cwd=place)
    assert done.returncode == 0, done.stderr
    lines = (place / "run/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line).get("step") for line in lines]
    assert steps[:4] == [0, 1, 2, 3]
    assert steps[-2:] == [4, 5]


@pytest.mark.parametrize(
    ("name", "words"),
    [("pgd", []), ("corrupted", CORRUPTED)],
)
def test_its_evaluations_go_on(place, name, words):
    """Nothing is measured again, and the summary says the same."""
    folder = place / "run/eval" / name
    rows = [path.name for path in folder.glob("*s.jsonl")]
    before = files(folder, *rows)
    summary = json.loads((folder / "summary.json").read_text())
    done = tool("test_net", "--checkpoint", "run", f"eval.name={name}", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert files(folder, *rows) == before
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_an_evaluation_that_was_cut_is_finished_with_the_same_rows(place):
    folder = place / "run/eval/pgd"
    whole = (folder / "results.jsonl").read_text()
    (folder / "results.jsonl").write_text("".join(whole.splitlines(keepends=True)[:3]))
    (folder / "summary.json").unlink()  # written last
    done = tool("test_net", "--checkpoint", "run", "eval.name=pgd", cwd=place)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [(row["index"], row["threat"]) for row in rows] == [
        (row["index"], row["threat"]) for row in map(json.loads, whole.splitlines())
    ]


def test_its_study_is_read_and_not_run_again(place):
    """Measures of later revisions are added, and all others stay as they are."""

    def numbers():
        study = json.loads((place / "study/study.json").read_text())
        for arms in study.values():
            for entry in arms.values():
                for measures in (entry, entry["difference"]):
                    later = [key for key in measures if key.startswith("kept ")]
                    for key in later:
                        del measures[key]
        return study

    weights = place / "study/clips/simclr/seed0/backbone.pt"
    before = weights.read_bytes(), numbers()
    done = tool("study", "--cfg", "study.yaml", "--output-dir", "study", cwd=place)
    assert done.returncode == 0, done.stderr
    assert (weights.read_bytes(), numbers()) == before
