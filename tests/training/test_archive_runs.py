"""Runs that read tar archives are those that read loose files."""

import json

import pytest

from tests import processes
from tests.helpers import REPO, tiny, tiny_ucf101, tool
from tests.processes import TWO_RANKS
from vidrobust.data.prepare.pack import pack

pytestmark = pytest.mark.slow

WORDS = (
    "device=cpu",
    "method.name=simclr",
    "train.epochs=2",
    "data.workers=1",
    "optim.schedule=constant",
)


def _train(place, name: str, *words: object):
    (place / "page.yaml").write_text("seed: 5")
    command = [*TWO_RANKS, REPO / "tools/train_net.py", "--cfg", "page.yaml", "--output-dir", name]
    done = processes.run([*command, *tiny(*WORDS, *words)], cwd=place)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny data set, its archive, and a run of two ranks that reads loose files."""
    top = tmp_path_factory.mktemp("archive-runs")
    pack(tiny_ucf101(top / "data"), top / "data.tar")
    _train(top, "loose", "data.root=data")
    return top


def _losses(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def test_two_ranks_read_an_archive_resume_and_measure_the_same(place):
    archive = ("data.root=none", "data.archive=data.tar")
    _train(place, "packed", *archive, "eval.enabled=false", "train.max_steps=2")
    _train(place, "packed", *archive, "--resume")
    assert len(_losses(place / "loose")) == 4
    assert _losses(place / "loose") == _losses(place / "packed")
    summaries = [
        (place / name / "eval/pgd/summary.json").read_bytes() for name in ("loose", "packed")
    ]
    assert summaries[0] == summaries[1]


def test_an_extraction_from_an_archive_writes_the_same_files(place):
    for name, words in (("a", ["data.root=data"]), ("b", ["data.root=x", "data.archive=data.tar"])):
        words = ["--checkpoint", "loose", "--output", f"{name}.npz", *words]
        done = tool("extract_features", *words, cwd=place)
        assert done.returncode == 0, done.stderr
    assert (place / "a.npz").read_bytes() == (place / "b.npz").read_bytes()


def test_an_evaluation_of_loose_files_is_continued_from_an_archive(place):
    words = ["--checkpoint", "loose", "data.root=x", "data.archive=data.tar"]
    before = (place / "loose/eval/pgd/summary.json").read_bytes()
    done = tool("test_net", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert (place / "loose/eval/pgd/summary.json").read_bytes() == before
