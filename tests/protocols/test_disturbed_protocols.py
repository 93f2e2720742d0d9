"""Protocols that are killed and repeated, or shared by two ranks, measure what one process does."""

import json
import re
import shutil
import signal
import time

import pytest

from tests.helpers import REPO
from tests.processes import TWO_RANKS, Process, run
from tests.protocols.helpers import place_with_run

pytestmark = pytest.mark.slow

QUICK = ("eval.checks=0", "eval.clips=1")
PROBES = (
    "protocol.name=linear_sgd",
    "protocol.augmented=8",
    "protocol.epochs=2",
    "protocol.validation=0.5",
    "protocol.stages=true",
    "eval.threats=[linf-1/255]",
    "eval.open_set.name=hmdb51",
    "eval.open_set.root=hmdb51",
    "eval.batch_size=1",
)
TRAINING = (
    "protocol.name=attentive",
    "protocol.splits=[1,2]",
    "eval.threats=[]",
    "model.head_heads=2",
    "train.epochs=4",
    "train.batch_size=4",
    "train.checkpoint_every=1",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A trained run, and what undisturbed processes measure."""
    top = place_with_run(tmp_path_factory.mktemp("disturbed"))
    for name, words in (("probes", PROBES), ("training", TRAINING)):
        _finish(top, name, words)
    return top


def _command(name, words, *launcher):
    command = [*launcher, REPO / "tools/test_net.py", "--checkpoint", "run", "--output-dir", name]
    return [*command, *QUICK, *words]


def _finish(place, name, words, *launcher):
    done = run(_command(name, words, *launcher), cwd=place)
    assert done.returncode == 0, done.stderr


def _kill(place, name, words, begun):
    """Kill a command as soon as a file that matches a pattern has content."""
    process = Process(_command(name, words), cwd=place)
    folder = place / name
    while process.poll() is None and not any(p.stat().st_size for p in folder.glob(begun)):
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.communicate()[1]


def _same(place, name, whole, *files):
    for file in files:
        assert (place / name / file).read_bytes() == (place / whole / file).read_bytes(), file


def _summaries(place, name):
    """Return the contents of the summaries of both splits, without the hash of the weights."""
    folder = place / name
    paths = [folder / f"split{k}/eval/attentive_split{k}/summary.json" for k in (1, 2)]
    summaries = [json.loads(path.read_text()) for path in paths]
    return [_leaves({**each, "checkpoint": each["checkpoint"].split()[:2]}) for each in summaries]


def _measures(place, name):
    return json.loads((place / name / "splits.json").read_text())["measures"]


def _leaves(value, name=""):
    """Return path -> value of nested lists and dictionaries."""
    if not isinstance(value, list | dict):
        return {name: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    parts = [_leaves(each, f"{name}.{key}") for key, each in pairs]
    return {key: each for part in parts for key, each in part.items()}


def test_probes_killed_while_clips_are_augmented_are_those_of_an_undisturbed_call(place):
    _kill(place, "cut", PROBES, "features/augmented-trained.rows.jsonl")
    rows = (place / "cut/features/augmented-trained.rows.jsonl").read_text().splitlines()
    assert 0 < len(rows) - 1 < 8, "it was in the middle"
    _finish(place, "cut", PROBES)
    _same(place, "cut", "probes", "summary.json", "predictions.jsonl", "results.jsonl")


def test_two_ranks_fit_probes_of_all_stages_as_one_process(place):
    _finish(place, "ranks", PROBES, *TWO_RANKS)
    files = ("summary.json", "predictions.jsonl", "results.jsonl", "open_set.jsonl")
    _same(place, "ranks", "probes", *files)
    summary = json.loads((place / "ranks/summary.json").read_text())
    assert len(summary["stages"]) == 5 and summary["open_set"]["unknown"] == 4


def test_a_protocol_killed_in_the_training_of_its_second_split_continues(place):
    shutil.copytree(place / "training/split1", place / "stopped/split1")
    _kill(place, "stopped", TRAINING, "split2/checkpoints/step_*.pt")
    assert not (place / "stopped/split2/backbone.pt").exists(), "it was in the middle"
    _finish(place, "stopped", TRAINING)
    first, second = re.findall(r"steps (\d+) to 8", (place / "stopped/split2/log.txt").read_text())
    assert int(first) == 0 < int(second) < 8
    files = ("summary.json", "predictions.jsonl")
    folder = "split2/eval/attentive_split2"
    _same(place, f"stopped/{folder}", f"training/{folder}", *files)
    assert _measures(place, "stopped") == _measures(place, "training")


def test_two_ranks_train_on_both_splits_as_one_process(place):
    _finish(place, "shared", TRAINING, *TWO_RANKS)
    for ours, theirs in zip(
        _summaries(place, "shared"), _summaries(place, "training"), strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-3)
    shared, alone = _measures(place, "shared"), _measures(place, "training")
    assert shared["head"] == alone["head"]
