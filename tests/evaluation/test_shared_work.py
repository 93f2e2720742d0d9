"""Two ranks share all forward passes of an evaluation, and write the bytes of one process."""

import json

import pytest

from tests import processes
from tests.helpers import REPO, counting_video, tiny, tiny_ucf101
from tests.processes import TWO_RANKS
from vidrobust import config
from vidrobust.training.loop import train

pytestmark = pytest.mark.slow

WORDS = (
    "eval.threats=[linf-4/255]",
    "eval.batch_size=6",  # three videos at two clips each: batches of several sizes
    "eval.sensitivity=10",
    "eval.bias=[freeze,swapped]",
    "eval.corruption.names=[contrast]",
    "eval.corruption.severities=[3]",
    "eval.shift.name=class_folder",
    "eval.shift.root=other",
    "eval.open_set.name=class_folder",
    "eval.open_set.root=unknown",
)
# files with dates, durations, commands and process ids
OTHERS = ("timing", "environment.json", "report.", "events.out", ".lock")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A trained run, other data sets, and the evaluation of a single process."""
    top = tmp_path_factory.mktemp("shared-work")
    root = tiny_ucf101(top / "data", train=3, test=5)
    for number in range(5):
        counting_video(top / f"other/{('alpha', 'beta')[number % 2]}/{number}.avi", 20)
        counting_video(top / f"unknown/gamma/{number}.avi", 20, first=50 * number)
    (root / "videos/Beta/v_Beta_g05_c01.avi").write_bytes(b"no video")
    train(config.loads("", tiny(f"data.root={root}", "train.max_steps=1")), top / "run")
    _evaluate(top, "one")
    return top


def _evaluate(place, name: str, *launcher: str) -> None:
    words = ("--checkpoint", "run", "--output-dir", name, *WORDS)
    done = processes.run([*launcher, REPO / "tools/test_net.py", *words], cwd=place)
    assert "videos that do not decode: 1" in done.stderr, done.stderr


def _files(folder) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    paths = (path for path in paths if not path.name.startswith(OTHERS))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_two_ranks_evaluate_as_one_process(place):
    _evaluate(place, "two", *TWO_RANKS)
    one, two = _files(place / "one"), _files(place / "two")
    assert one.keys() == two.keys()
    different = [name for name in one if one[name] != two[name]]
    assert not different
    summary = json.loads(one["summary.json"])
    for part in ("sensitivity", "geometry", "bias", "corruption", "shift", "open_set"):
        assert summary[part], part
    assert summary["sensitivity"]["n"] == 9
