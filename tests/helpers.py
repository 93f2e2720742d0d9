"""Videos whose pixels count, and tiny data sets made of them."""

import contextlib
import io
import multiprocessing
import os
import pickle
import runpy
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torchvision import datasets

from vidrobust.attacks import ThreatModel
from vidrobust.data import Batch
from vidrobust.data import isolation as child
from vidrobust.data.decoding.pyav import require_backend
from vidrobust.data.motionshapes import write_video
from vidrobust.methods import Adversary
from vidrobust.utils.errors import UserError

REPO = Path(__file__).parents[1]
SHARED = REPO.parent / "shared" / "data"

needs_ucf101_mini = pytest.mark.skipif(
    not (SHARED / "ucf101_mini").is_dir(), reason="needs ../shared/data/ucf101_mini"
)


def has_backend(name: str) -> bool:
    """Return whether a decoder loads here: torchcodec also needs FFmpeg's libraries."""
    try:
        require_backend(name)
    except UserError:
        return False
    return True


@contextlib.contextmanager
def another_process(
    context: Callable[[], contextlib.AbstractContextManager[object]],
) -> Iterator[None]:
    """Another process is inside of a context, until it is killed at the end of this one."""
    forked = multiprocessing.get_context("fork")
    ready = forked.Event()

    def hold() -> None:
        with context():
            ready.set()
            time.sleep(60)

    holder = forked.Process(target=hold, daemon=True)
    holder.start()
    assert ready.wait(60)
    try:
        yield
    finally:
        holder.kill()
        holder.join()


def children_begin_with(patch: pytest.MonkeyPatch, code: str) -> None:
    """Have children forked from a clean process that has run some code.

    A copy of this process is not clean: once it has used FFmpeg its copies may hang in it.
    """
    control, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    there.set_inheritable(True)
    begin = (
        f"import sys; sys.path[:] = {[str(REPO), *sys.path]!r}\n{code}\n"
        f"from vidrobust.data import isolation; isolation.serve_nursery({there.fileno()})"
    )
    os.posix_spawn(sys.executable, [sys.executable, "-c", begin], os.environ)
    there.close()
    _serve_by(patch, control)


def children_see_this_process(patch: pytest.MonkeyPatch) -> None:
    """Have children forked from a copy of this process, as it is patched now.

    For children that convert no frame: see `children_begin_with`.
    """
    control, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        try:
            control.close()
            child.serve_nursery(there.detach())
        finally:
            os._exit(1)
    there.close()
    _serve_by(patch, control)


def _serve_by(patch: pytest.MonkeyPatch, control: socket.socket) -> None:
    patch.setattr(child._nursery, "owner", 0)  # it ends with the socket
    patch.setattr(child._nursery, "control", control)
    patch.setattr(
        child._nursery, "start", lambda: child._nursery.control or pytest.fail("the copy is gone")
    )


def counting_frames(count: int, size: int = 64, first: int = 0) -> np.ndarray:
    """(count, size, size, 3): frame n is a 4 x 4 board whose cells are the bits of first + n, black
    or white.
    """
    numbers = np.arange(first, first + count)
    bits = (numbers[:, None] >> np.arange(16)) & 1
    board = np.kron(bits.reshape(-1, 4, 4), np.ones((size // 4, size // 4), int))
    return np.repeat((board * 255).astype(np.uint8)[..., None], 3, axis=-1)


def read_numbers(frames: np.ndarray) -> list[int]:
    """The numbers that frames (T, H, W, 3) show, whatever their size."""
    h, w = frames.shape[1] // 4, frames.shape[2] // 4
    centres = frames[:, h // 2 :: h, w // 2 :: w].mean(-1)[:, :4, :4].reshape(-1, 16)
    return ((centres > 127) << np.arange(16)).sum(1).tolist()


def counting_video(
    path: Path, count: int, *, codec: str = "mpeg4", size: int = 64, first: int = 0
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, counting_frames(count, size, first), codec=codec)
    return path


def encode(
    path: Path,
    frames: np.ndarray,
    codec: str,
    *,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
    quarter_turns: int = 0,
    container: dict[str, str] | None = None,
) -> Path:
    """A video file of any codec; times: milliseconds of each frame; quarter_turns: how an MP4 asks
    to be turned.
    """
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = pix_fmt, options or {}
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    if quarter_turns:
        content, one, minus = path.read_bytes(), 0x10000, 0xFFFF0000
        still = struct.pack(">9I", one, 0, 0, 0, one, 0, 0, 0, 0x40000000)
        a, b = [(one, 0), (0, one), (minus, 0), (0, minus)][quarter_turns % 4]
        turned = struct.pack(">9I", a, b, 0, -b % 2**32, a, 0, 0, 0, 0x40000000)
        at = content.index(still, content.index(b"tkhd"))
        path.write_bytes(content[:at] + turned + content[at + len(still) :])
    return path


def with_not_coded(path: Path, frames: np.ndarray, every: int) -> Path:
    """An MPEG-4 video with a picture that is "not coded", and so not shown, before each `every`th
    frame.
    """
    source = encode(path.with_name(f"coded{path.suffix}"), frames, "mpeg4", options={"g": "12"})
    with av.open(str(source)) as whole, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(whole.streams.video[0])
        place = 0
        for number, packet in enumerate(p for p in whole.demux(video=0) if p.size):
            pictures = [packet]
            if number % every == every - 1:
                # P, no full second, marker, time (5 bits: 25 a second), marker, not coded, stuffing
                bits = "01" + "0" + "1" + f"{place % 25:05b}" + "1" + "0" + "01111"
                pictures.insert(0, av.Packet(b"\x00\x00\x01\xb6" + int(bits, 2).to_bytes(2, "big")))
            for picture in pictures:
                picture.time_base = Fraction(1, 25)
                picture.pts = picture.dts = place
                picture.duration = 1
                picture.stream = copy
                out.mux(picture)
                place += 1
    return path


def trim(source: Path, target: Path, count: int) -> Path:
    """An MP4 without its first `count` frames as editors cut: they stay in the file, and are not to
    be shown.
    """
    with av.open(str(source)) as whole, av.open(str(target), "w") as out:
        stream = whole.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.dts is not None:
                shift = round(count / (25 * stream.time_base))
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                out.mux(packet)
    return target


def cut(path: Path, share: float) -> Path:
    """A file without its end: `share` of it is left."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def same_batch(a: Batch, b: Batch) -> bool:
    return torch.equal(a.clips, b.clips) and torch.equal(a.draws, b.draws) and a.uids == b.uids


def tiny_ucf101(
    root: Path, classes: tuple[str, ...] = ("Alpha", "Beta"), train: int = 4, test: int = 2
) -> Path:
    """A data set in UCF101's layout: 20-frame counting videos, ids 3, 6, ... (with gaps)."""
    lists: dict[str, list[str]] = {"trainlist01": [], "testlist01": []}
    for c, name in enumerate(classes):
        for i in range(train + test):
            uid = f"{name}/v_{name}_g{i + 1:02d}_c01.avi"
            counting_video(root / "videos" / uid, 20, first=1000 * c + 50 * i)
            if i < train:
                lists["trainlist01"].append(f"{uid} {3 * (c + 1)}")
            else:
                lists["testlist01"].append(uid)
    folder = root / "ucfTrainTestlist"
    folder.mkdir(parents=True)
    (folder / "classInd.txt").write_text(
        "".join(f"{3 * (c + 1)} {n}\n" for c, n in enumerate(classes))
    )
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def tiny_hmdb51(root: Path) -> Path:
    lists = root / "testTrainMulti_7030_splits"
    lists.mkdir(parents=True)
    for c, name in enumerate(("brush_hair", "wave")):
        lines = []
        for i in range(6):
            file = f"#film({i // 2})_[x]_{name}_f_cm_np1_ba_med_{i}.avi"
            counting_video(root / "hmdb51_org" / name / file, 20, first=1000 * c + 50 * i)
            lines.append(f"{file} {1 if i < 4 else 2} \n")
        (lists / f"{name}_test_split1.txt").write_text("".join(lines))
    return root


def tiny_kinetics(root: Path) -> Path:
    for split, count in (("train", 4), ("val", 2)):
        rows = ["label,youtube_id,time_start,time_end,split"]
        for c, name in enumerate(("riding a bike", "tap dancing")):
            for i in range(count):
                rows.append(f"{name},{split}-_{c}{i},{i},{i + 10},{split}")
                path = root / split / name / f"{split}-_{c}{i}_{i:06d}_{i + 10:06d}.mp4"
                counting_video(path, 20, first=1000 * c + 50 * i)
        (root / f"{split}.csv").write_text("\n".join(rows) + "\n")
    return root


def tiny_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, per_batch: int = 3) -> Path:
    """CIFAR-10's pickles, of images that show their label and number."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    kind = datasets.CIFAR10
    for number, (name, _) in enumerate([*kind.train_list, *kind.test_list]):
        labels = [(number + i) % 10 for i in range(per_batch)]
        data = np.zeros((per_batch, 3, 32, 32), np.uint8)
        data[:, 0] = np.array(labels)[:, None, None]
        data[:, 1] = number
        (folder / name).write_bytes(
            pickle.dumps({"data": data.reshape(per_batch, -1), "labels": labels})
        )
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return root


TINY = [
    "data.name=ucf101",
    "data.frames=2",
    "data.stride=2",
    "data.short_side=28",
    "data.size=16",
    "data.workers=0",
    "model.backbone=r2plus1d_10",
    "model.width=4",
    "model.hidden=8",
    "model.dim=8",
    "train.batch_size=4",
    "train.amp=fp32",  # the same on every CPU
    "train.epochs=2",
    "train.log_every=1",
    "eval.clips=2",
    "eval.steps=2",
    "eval.checks=0",
    "eval.pictures=1",
    "eval.threats=[linf-0,linf-8/255]",
]


def one_step(eps: float) -> Adversary:
    """CLAE's attack: one step from the clips themselves, norms in train mode."""
    return Adversary([ThreatModel("linf", eps)], train_mode=True)


def tiny(*words: object) -> list[str]:
    """The TINY options, those of `words` in place of the same ones."""
    keys = {str(word).split("=")[0] for word in words}
    return [option for option in TINY if option.split("=")[0] not in keys] + [
        str(word) for word in words
    ]


def tool(name: str, *args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a tool as its command line does, in this process: importing torch anew takes seconds."""
    path = str(REPO / ("datasets" if name == "prepare" else "tools") / f"{name}.py")
    out, err, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [path, *map(str, args)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(path, run_name="__main__")
            except SystemExit as end:
                status = int(end.code or 0)
    return subprocess.CompletedProcess(sys.argv, status, out.getvalue(), err.getvalue())


def videomae_config(**options):
    """Return the options of a tiny VideoMAE of transformers, two frames of 32 pixels by default."""
    transformers = pytest.importorskip("transformers")
    tiny_options = {
        "hidden_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "image_size": 32,
        "num_frames": 2,
    }
    return transformers.VideoMAEConfig(**tiny_options | options)


def tiny_videomae(folder, **options):
    """Write a tiny VideoMAE with a classifier, as `save_pretrained` does; return the folder."""
    cfg = videomae_config(**options)
    transformers = pytest.importorskip("transformers")
    transformers.VideoMAEForVideoClassification(cfg).save_pretrained(folder)
    return folder
