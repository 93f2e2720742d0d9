"""An evaluation in processes of its own: killed at random moments, spread over two ranks, resumed
as another one.
"""

import json
import random
import shutil
import signal
import time

import numpy as np
import pytest

from tests import processes
from tests.helpers import REPO, counting_video, tiny, tiny_ucf101, tool
from tests.processes import TWO_RANKS, Process
from vidrobust import config
from vidrobust.training.loop import train

pytestmark = pytest.mark.slow

WORDS = [
    "eval.suite=video",
    "eval.effort=0.01",
    "eval.batch_size=1",
    "eval.h264=28",
    "eval.checks=4",
    "eval.corruption.names=[contrast,jumble]",
    "eval.corruption.severities=[2,5]",
    "eval.shift.name=class_folder",
    "eval.shift.root=other",
]
VIDEOS = 10  # an odd number for each of two ranks
THREATS = "eval.threats=[linf-1/255,linf-4/255,flicker-linf-8/255,l2_frame-0.3]"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, and its evaluation that nothing disturbs."""
    top = tmp_path_factory.mktemp("killed")
    root = tiny_ucf101(top / "data", train=2, test=VIDEOS // 2)
    for number in range(5):
        name = ("alpha", "beta")[number % 2]
        counting_video(top / f"other/{name}/{number}.avi", 20, first=3000 + 50 * number)
    train(
        config.loads("", tiny(f"data.root={root}", "data.frames=4", "train.checkpoint_every=1")),
        top / "run",
    )
    done = processes.run(_command(top, "whole"), cwd=top)
    assert done.returncode == 0, done.stderr
    return top


def _command(top, name, *launcher):
    return [
        *launcher,
        REPO / "tools/test_net.py",
        "--checkpoint",
        "run",
        "--output-dir",
        name,
        THREATS,
        *WORDS,
    ]


def _same(top, name):
    for file in (
        "summary.json",
        "results.jsonl",
        "corruptions.jsonl",
        "predictions.jsonl",
        "shift.jsonl",
    ):
        assert (top / name / file).read_bytes() == (top / "whole" / file).read_bytes(), file
    summary = json.loads((top / name / "summary.json").read_text())
    assert summary["n"] == VIDEOS and summary["unit"] == "clip"


def test_killed_five_times_it_gives_the_same_summary(run):
    """Each time after some more rows, at a random moment of the next batch; the first kill before
    there are any.
    """
    rng, path = random.Random(0), run / "cut" / "results.jsonl"
    seconds = [
        sum(sum(attacks.values()) for attacks in json.loads(line).values())
        for line in (run / "whole/timing.jsonl").read_text().splitlines()
    ]
    rows = [0]
    for kill in range(5):
        process = Process(_command(run, "cut"), cwd=run, stderr=processes.DEVNULL)
        while process.poll() is None and _rows(path) <= rows[-1] and (kill or not path.is_file()):
            time.sleep(0.01)
        time.sleep(rng.random() * sum(seconds) / len(seconds))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it was in the middle"
        rows.append(_rows(path))
    assert rows == sorted(rows) and 0 < rows[-1] < VIDEOS * 4, rows
    done = processes.run(_command(run, "cut"), cwd=run)
    assert done.returncode == 0, done.stderr
    _same(run, "cut")


def _rows(path):
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_two_ranks_share_it_and_count_no_video_twice(run):
    """A batch for each video, over two ranks: unpadded, merged in order."""
    done = processes.run(_command(run, "ranks", *TWO_RANKS), cwd=run)
    assert done.returncode == 0, done.stderr
    _same(run, "ranks")
    rows = [json.loads(line) for line in (run / "ranks/results.jsonl").read_text().splitlines()]
    assert len({(row["uid"], row["threat"]) for row in rows}) == len(rows) == VIDEOS * 4
    assert not list((run / "ranks").glob("[rc]*.rank*.jsonl"))


def _features(run, name, *launcher, words=()):
    command = [
        *launcher,
        REPO / "tools/extract_features.py",
        "--checkpoint",
        "run",
        "--output",
        name if "." in name else f"{name}.npz",
        "eval.batch_size=4",
        *words,
    ]
    return Process(command, cwd=run)


def test_two_ranks_extract_what_one_does_and_write_it_once(run):
    """Each rank wrote the whole file: 19 of 20 runs failed."""
    for name, words in (("alone", ()), ("shared", TWO_RANKS)):
        done = _features(run, name, *words)
        _, err = done.communicate()
        assert done.returncode == 0, err
    with np.load(run / "alone.npz") as alone, np.load(run / "shared.npz") as shared:
        for key in alone.files:
            assert np.array_equal(alone[key], shared[key]), key
    assert (run / "alone.npz").read_bytes() == (run / "shared.npz").read_bytes()
    assert not list(run.glob("*.partial"))


def test_two_ranks_write_the_files_of_stages_that_one_does(run):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    clips = ("data.frames=4", "data.stride=2", "data.size=16", "data.short_side=28")
    data = ("data.name=ucf101", f"data.root={run / 'data'}", "eval.clips=2")
    words = ("--stages", "all", "--half", "--model", "torchvision:r3d_18", *clips, *data)
    for name, launch in (("one", ()), ("two", launcher)):
        done = _features(run, f"{name}.npy", *launch, words=words)
        _, err = done.communicate()
        assert done.returncode == 0, err
    alone = sorted(path.name for path in run.glob("one.*"))
    assert len(alone) == 3 * (5 + 4), "features, table and description of the stages of two models"
    for name in alone:
        assert (run / name).read_bytes() == (run / f"two{name[3:]}").read_bytes(), name
    assert not list(run.glob("*.partial"))


def test_a_killed_extraction_goes_on(run):
    """Whatever it had written is not computed again, and the file is that of an undisturbed one."""
    table = run / "cut.npz.partial/test.rows.jsonl"
    done = _features(run, "cut")
    while done.poll() is None and _rows(table) < 5:
        time.sleep(0.002)
    done.kill()
    done.communicate()
    before = _rows(table)
    if before:  # it may have been done before it was killed
        first = table.read_bytes()[:100]
    done = _features(run, "cut")
    _, err = done.communicate()
    assert done.returncode == 0, err
    whole = _features(run, "uncut")
    whole.communicate()
    with np.load(run / "uncut.npz") as uncut, np.load(run / "cut.npz") as cut:
        for key in uncut.files:
            assert np.array_equal(uncut[key], cut[key]), key
    assert not before or first.startswith(b'{"identity"')


def test_another_budget_or_checkpoint_is_refused_with_the_reason(run):
    budget = THREATS.replace("linf-4/255", "linf-3/255")
    refused = tool(
        "test_net", "--checkpoint", "run", "--output-dir", "whole", budget, *WORDS, cwd=run
    )
    assert (
        refused.returncode == 1
        and "another evaluation, of other options (eval.threats);" in refused.stderr
    )
    first = run / "run/checkpoints/step_00000001.pt"
    refused = tool(
        "test_net", "--checkpoint", first, "--output-dir", "whole", THREATS, *WORDS, cwd=run
    )
    assert refused.returncode == 1 and "another evaluation, of other checkpoint;" in refused.stderr


def test_rows_that_two_files_hold_count_once(run, tmp_path):
    """A kill between merging the ranks' files and clearing them away."""
    shutil.copytree(run / "whole", tmp_path / "torn")
    (tmp_path / "torn/summary.json").unlink()
    lines = (tmp_path / "torn/results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "torn/results.rank1.jsonl").write_text("".join(lines[8:16]) + lines[20][:30])
    shutil.copytree(run / "run", tmp_path / "run")
    (tmp_path / "other").symlink_to(run / "other")
    done = tool(
        "test_net", "--checkpoint", "run", "--output-dir", "torn", THREATS, *WORDS, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "torn/results.jsonl").read_bytes() == (
        run / "whole/results.jsonl"
    ).read_bytes()
    assert not list((tmp_path / "torn").glob("results.rank*"))
