"""A step that fails, a worker that dies, a full disk.

The state after the last whole step is kept, bitwise.
"""

import errno
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from tests.helpers import REPO, another_process, tiny, tool
from vidrobust import checkpoint, config
from vidrobust.methods import Method
from vidrobust.training import loop, step
from vidrobust.training.loop import NonFinite, train
from vidrobust.utils import atomic_files as files
from vidrobust.utils.errors import UserError

CLAE = ["method.adversary.name=clae", "method.adversary.threats=[linf-4/255]"]
METHODS = {
    "simclr": [],
    "clae": CLAE,
    "moco": ["method.name=moco", "method.queue=8"],
    "byol": ["method.name=byol", "method.predictor=8"],
    "free": [
        "method.name=supervised",
        "method.adversary.name=free",
        "method.adversary.replays=2",
        "method.adversary.threats=[linf-4/255]",
    ],
    "average": ["train.average=0.9"],
}
EVERY_STEP = ["train.checkpoint_every=1", "train.keep=9"]


def _cfg(ucf, *words):
    epochs = [] if any(word.startswith("train.epochs") for word in words) else ["train.epochs=3"]
    return config.loads("", tiny(f"data.root={ucf}", *epochs, *words))


def _equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def _fail_in_step(monkeypatch, step, change):
    """Let `change` have the losses of step `step`, of the second replay where there are several."""
    whole, calls = Method.__call__, []

    def failing(self, *arguments):
        losses = whole(self, *arguments)
        calls.append(1)
        return change(losses) if len(calls) == step * self.replays + self.replays else losses

    monkeypatch.setattr(Method, "__call__", failing)


def _spoilt(losses):
    return {name: value * float("nan") for name, value in losses.items()}


def _broken(losses):
    raise ValueError("a bug in step three")


@pytest.fixture(scope="module")
def undisturbed(ucf, tmp_path_factory):
    """Return a function: the folder of a run that nothing disturbs, trained once per kind."""

    @functools.cache
    def folder(kind):
        out = tmp_path_factory.mktemp(kind)
        train(_cfg(ucf, *METHODS[kind], *EVERY_STEP), out)
        return out

    return folder


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize(
    ("change", "error"), [(_spoilt, NonFinite), (_broken, ValueError)], ids=["nan", "bug"]
)
def test_the_state_before_a_step_that_fails_is_written_bitwise(
    ucf, tmp_path, monkeypatch, kind, change, error, undisturbed
):
    whole, failed = undisturbed(kind), tmp_path / "failed"
    with monkeypatch.context() as patch:
        _fail_in_step(patch, 3, change)
        rare = [*METHODS[kind], "train.checkpoint_every=100", "train.keep=9"]
        with pytest.raises(error):
            train(_cfg(ucf, *rare), failed)
    expected, kept = (
        checkpoint.read_checkpoint(folder / "checkpoints/step_00000003.pt")
        for folder in (whole, failed)
    )
    for key in ("model", "method", "optimizer", "rng", "average"):
        assert _equal(expected.get(key), kept.get(key)), key
    train(_cfg(ucf, *METHODS[kind], *EVERY_STEP), failed, failed)
    ends = [checkpoint.read_checkpoint(folder) for folder in (whole, failed)]
    assert ends[0]["step"] == ends[1]["step"] == 6 and _equal(ends[0]["model"], ends[1]["model"])


def test_what_repeats_a_step_that_is_not_finite_is_logged(ucf, tmp_path, monkeypatch):
    _fail_in_step(monkeypatch, 3, _spoilt)
    with pytest.raises(
        NonFinite, match=r"loss is nan at step 3; .*last good checkpoint: .*step_00000003.pt"
    ):
        train(_cfg(ucf, "train.checkpoint_every=100", "seed=4"), tmp_path)
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (
        row["event"] == "loss is nan"
        and row["step"] == 3
        and row["epoch"] == 1
        and row["seed"] == 4
    )
    assert len(row["uids"]) == len(row["index"]) == 4
    assert row["state_before"] == str(tmp_path / "checkpoints/step_00000003.pt")


def test_the_last_update_of_a_run_is_checked(ucf, tmp_path, monkeypatch):
    whole, calls = torch.optim.SGD.step, []

    def overflowing(self, *arguments):
        whole(self, *arguments)
        calls.append(1)
        if len(calls) == 6:
            self.param_groups[0]["params"][0].data[0] = float("inf")

    monkeypatch.setattr(torch.optim.SGD, "step", overflowing)
    with pytest.raises(
        NonFinite,
        match=r"model\..* is not finite after step 6, which is not saved; last good "
        r"checkpoint: .*step_00000004.pt",
    ):
        train(_cfg(ucf, "train.checkpoint_every=2"), tmp_path)
    assert checkpoint.read_checkpoint(tmp_path)["step"] == 4
    assert not (tmp_path / "backbone.pt").exists()


def test_a_loader_process_that_is_killed_costs_no_step(ucf, tmp_path, monkeypatch):
    words = ["data.workers=1", "train.epochs=6"]
    train(_cfg(ucf, *words), tmp_path / "whole")
    take, seen = loop._next_batch, []

    def taking(batches, run):
        seen.append(1)
        if len(seen) == 5:
            os.kill(int(run.dataset.reading[0, 0]), signal.SIGKILL)
        return take(batches, run)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_next_batch", taking)
        with pytest.raises(UserError, match="a loader process died while it read") as error:
            train(_cfg(ucf, *words, "train.checkpoint_every=1000"), tmp_path / "cut")
    assert "\n" not in str(error.value)
    step = checkpoint.read_checkpoint(tmp_path / "cut")["step"]
    assert step >= 4
    train(_cfg(ucf, *words), tmp_path / "cut", tmp_path / "cut")
    ends = [checkpoint.read_checkpoint(tmp_path / name) for name in ("whole", "cut")]
    assert _equal(ends[0]["model"], ends[1]["model"])


def test_a_loader_process_that_dies_during_an_update_costs_no_step(ucf, tmp_path, monkeypatch):
    words = ["data.workers=1", "train.epochs=6"]
    train(_cfg(ucf, *words), tmp_path / "whole")
    take, update, runs, updates = loop._next_batch, torch.optim.SGD.step, [], []

    def taking(batches, run):
        runs.append(run)
        return take(batches, run)

    def updating(optimizer, *args):
        result = update(optimizer, *args)  # weights are new, the step is not done
        updates.append(1)
        if len(updates) == 5:
            os.kill(int(runs[0].dataset.reading[0, 0]), signal.SIGKILL)
            time.sleep(0.5)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_next_batch", taking)
        patch.setattr(torch.optim.SGD, "step", updating)
        with pytest.raises(UserError, match="a loader process died while it read") as error:
            train(_cfg(ucf, *words, "train.checkpoint_every=1000"), tmp_path / "cut")
    assert "after step 5 of 12" in str(error.value)
    assert checkpoint.read_checkpoint(tmp_path / "cut")["step"] == 5
    rows = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [0, 1, 2, 3, 4]
    train(_cfg(ucf, *words), tmp_path / "cut", tmp_path / "cut")
    ends = [checkpoint.read_checkpoint(tmp_path / name) for name in ("whole", "cut")]
    assert _equal(ends[0]["model"], ends[1]["model"])


class _Full:
    """A file on a disk that has room for some bytes more."""

    def __init__(self, file, room):
        self.file = file
        self.room = room

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, content):
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(content)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 100, 5000])
def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_partial(tmp_path, monkeypatch, room):
    path = tmp_path / "last.pt"
    checkpoint.write_atomic(path, {"w": torch.ones(10)})
    before = path.read_bytes()
    monkeypatch.setattr(
        files, "open", lambda *arguments: _Full(open(*arguments), room), raising=False
    )
    with pytest.raises(OSError, match="No space left on device") as error:
        checkpoint.write_atomic(path, {"w": torch.rand(10000)})
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["last.pt"]


def _in_small_file_system(size, command, cwd):
    """Run a command where `small` in `cwd` is a file system of so many bytes.

    None where that is not permitted.
    """
    (cwd / "small").mkdir()
    mount = f"mount -t tmpfs -o size={size} tmpfs small"
    script = f'{mount} && "$@"; status=$?; ls -A small/out/checkpoints; exit $status'
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], capture_output=True).returncode:
        return None
    return subprocess.run(
        [unshare, "-m", "sh", "-c", script, "sh", *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
    )


def test_a_run_on_a_full_disk_ends_with_one_line(ucf, tmp_path):
    (tmp_path / "page.yaml").write_text("")
    words = tiny(
        f"data.root={ucf}",
        "eval.enabled=false",
        "train.epochs=40",
        "train.checkpoint_every=1",
        "train.keep=40",
        "device=cpu",
    )
    command = [
        sys.executable,
        str(REPO / "tools/train_net.py"),
        "--cfg",
        "page.yaml",
        "--output-dir",
        "small/out",
    ]
    done = _in_small_file_system("3m", [*command, *words], tmp_path)
    if done is None:
        pytest.skip("this system permits no mount")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("No space left on device; make room") == 1, done.stderr
    assert "last.pt" in done.stdout and "partial" not in done.stdout


def test_rows_of_metrics_survive_a_kill_while_they_are_rewritten(ucf, tmp_path, monkeypatch):
    cfg = _cfg(ucf, "train.checkpoint_every=2", "train.keep=9")
    train(cfg, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    replace = os.replace

    def killed(source, target):
        if str(target).endswith("metrics.jsonl"):
            raise KeyboardInterrupt
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            train(cfg, tmp_path, tmp_path / "checkpoints/step_00000002.pt")
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_config_yaml_is_written_whole_or_not_at_all(ucf, tmp_path, monkeypatch):
    train(_cfg(ucf), tmp_path)
    before = (tmp_path / "config.yaml").read_bytes()
    replace = os.replace

    def killed(source, target):
        if str(target).endswith("config.yaml"):
            raise KeyboardInterrupt
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            train(_cfg(ucf, "train.epochs=4"), tmp_path, tmp_path)
    assert (tmp_path / "config.yaml").read_bytes() == before


def _spoil_gradients(monkeypatch, kinds):
    """Make the weight gradients of layers of these kinds NaN, as a faulty kernel does."""
    whole = step.clip_gradients

    def clip(method, limit):
        for module in method.modules():
            if (
                isinstance(module, kinds)
                and module.weight is not None
                and module.weight.grad is not None
            ):
                module.weight.grad[0] = float("nan")
        return whole(method, limit)

    monkeypatch.setattr(step, "clip_gradients", clip)


def test_a_kernel_that_spoils_weight_gradients_under_bf16_is_named_with_the_remedy(
    ucf, tmp_path, monkeypatch
):
    _spoil_gradients(monkeypatch, nn.Conv3d)
    with pytest.raises(
        NonFinite,
        match=r"gradient norm is nan at step 0; .*model\.backbone\.trunk\S* "
        r"\(Conv3d, kernel \(3,1,1\)\).*set train.amp=fp32",
    ):
        train(_cfg(ucf, "train.amp=bf16"), tmp_path)


@pytest.mark.parametrize(
    ("words", "kinds"),
    [(["train.amp=bf16"], (nn.Conv3d, nn.BatchNorm3d)), (["train.amp=fp32"], nn.Conv3d)],
)
def test_other_gradients_that_are_not_finite_are_not_the_kernels_fault(
    ucf, tmp_path, monkeypatch, words, kinds
):
    _spoil_gradients(monkeypatch, kinds)
    with pytest.raises(NonFinite, match="lower optim.lr or set optim.clip_norm") as error:
        train(_cfg(ucf, *words), tmp_path)
    assert "kernel" not in str(error.value)


def _page(ucf, top):
    (top / "page.yaml").write_text(f"data: {{root: {ucf}}}")
    return ["train_net", "--cfg", "page.yaml", "--output-dir", "out"]


def test_resume_falls_back_to_the_newest_sound_checkpoint_and_says_so(ucf, tmp_path):
    words = tiny("eval.enabled=false", "train.checkpoint_every=1", "train.keep=9")
    command = _page(ucf, tmp_path)
    assert tool(*command, *words, cwd=tmp_path).returncode == 0
    whole = checkpoint.read_checkpoint(tmp_path / "out")
    folder = tmp_path / "out/checkpoints"
    for name in ("last.pt", "step_00000004.pt"):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 4
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    done = tool(*command, "--resume", *words, cwd=tmp_path)
    assert done.returncode == 0 and "steps 3 to 4" in done.stderr
    assert re.search(r"last.pt: .*wrong checksum.*using step_00000003.pt of step 3", done.stderr)
    assert _equal(whole["model"], checkpoint.read_checkpoint(tmp_path / "out")["model"])


@pytest.mark.parametrize("left", ["nothing", "damaged"])
def test_resume_never_starts_anew_where_steps_were_written(ucf, tmp_path, left):
    words = tiny("eval.enabled=false", "train.checkpoint_every=1")
    command = _page(ucf, tmp_path)
    assert tool(*command, *words, cwd=tmp_path).returncode == 0
    rows = (tmp_path / "out/metrics.jsonl").read_bytes()
    for path in (tmp_path / "out/checkpoints").iterdir():
        path.unlink()
        if left == "damaged":
            path.write_bytes(b"PK")
    done = tool(*command, "--resume", *words, cwd=tmp_path)
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "--overwrite" in line, done.stderr
    assert ("has no checkpoint, but a log of 4 steps" in line) == (left == "nothing")
    assert (tmp_path / "out/metrics.jsonl").read_bytes() == rows
    if left == "nothing":
        # between a logged step and its checkpoint, the process that trains there is the reason
        with another_process(lambda: files.held(tmp_path / "out/env.json", "in use")):
            done = tool(*command, "--resume", *words, cwd=tmp_path)
        assert "another process trains in out" in done.stderr.strip().splitlines()[-1]


def test_resume_begins_again_where_the_first_checkpoint_was_not_written(ucf, tmp_path, monkeypatch):
    words = tiny("eval.enabled=false", "train.checkpoint_every=2")
    command = _page(ucf, tmp_path)

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full_disk:
        full_disk.setattr(checkpoint, "save", no_room)
        done = tool(*command, *words, cwd=tmp_path)
    assert (
        done.returncode == 1
        and "run the same command again, train_net with --resume" in done.stderr
    )
    assert [row["step"] for row in _steps(tmp_path)] == [0, 1]
    done = tool(*command, "--resume", *words, cwd=tmp_path)
    assert done.returncode == 0 and "starting at step 0" in done.stderr, done.stderr
    assert [row["step"] for row in _steps(tmp_path)] == [0, 1, 2, 3]


def _steps(top):
    rows = [json.loads(line) for line in open(top / "out/metrics.jsonl")]
    return [row for row in rows if row["split"] == "train"]


def test_a_missing_last_checkpoint_is_replaced_by_the_newest_step(ucf, tmp_path):
    words = tiny("eval.enabled=false", "train.checkpoint_every=1")
    assert tool(*_page(ucf, tmp_path), *words, cwd=tmp_path).returncode == 0
    (tmp_path / "out/checkpoints/last.pt").unlink()
    done = tool("extract_features", "--checkpoint", "out", "--output", "f.npz", cwd=tmp_path)
    assert done.returncode == 0 and "last.pt is missing: using step_00000004.pt" in done.stderr, (
        done.stderr
    )
