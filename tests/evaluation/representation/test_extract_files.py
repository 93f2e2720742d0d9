"""Files of features: formats, stages, tokens, float16, several models, failures, kills."""

import json
import os
import shutil
import signal
import sys
import traceback

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.helpers import counting_frames, counting_video
from vidrobust import config
from vidrobust.data import eval_dataset
from vidrobust.data.given import loose_records
from vidrobust.evaluation import FeatureSettings, extract, extract_files
from vidrobust.evaluation.representation import feature_files
from vidrobust.evaluation.representation.features import FeatureSource
from vidrobust.models import Model, inference, stored_features
from vidrobust.models.backbone import Backbone, BackboneParts
from vidrobust.utils.errors import UserError

N = 7  # videos of 20 + n frames, the fourth of which does not decode
CPU = torch.device("cpu")


class Cells(nn.Module):
    """Show the bits of counting frames: cells (B, 3, T, 4, 4), and their doubles."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.layer1 = nn.AdaptiveAvgPool3d((None, 4, 4))
        self.layer2 = nn.Upsample(scale_factor=(1, 0.5, 0.5))
        self.scale = scale

    def forward(self, x):
        return self.scale * self.layer2(self.layer1(x)).mean((2, 3, 4))


OPTIONS = {
    "data.frames": 3,
    "data.stride": 2,
    "data.short_side": 16,
    "data.size": 16,
    "data.workers": 0,
    "data.timeout_s": 0,
    "eval.clips": 2,
    "eval.batch_size": 4,
    "method.name": "supervised",
}


def _cfg(*words):
    options = OPTIONS | dict(word.split("=") for word in words)
    return config.loads("", [f"{key}={value}" for key, value in options.items()])


def _source(path, *words, scale=1.0, name="cells"):
    """Return a model whose stages are known."""
    backbone = Backbone(BackboneParts(Cells(scale), 3, (0.0,) * 3, (1.0,) * 3))
    meta = {"model": name, "scale": scale}
    return FeatureSource(
        name, _cfg(*words), lambda classes: (Model(backbone, nn.Identity()), meta), path
    )


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for n in range(N):
        counting_video(folder / f"v{n}, {'é' * n}.avi", 20 + n, first=100 * n)
    (folder / f"v3, {'é' * 3}.avi").write_bytes(b"")
    return str(folder)


def _run(sources, videos, **settings):
    """Extract; return the files, and what is reported of videos that do not decode."""
    reason = ""
    try:
        extract_files(sources, "videos", FeatureSettings(videos=videos, **settings))
    except UserError as error:
        reason = str(error)
    return reason


def _in_memory(videos, source):
    """Return the features that `extract` gives."""
    model, _ = source.load(0)
    cfg = source.cfg
    (features,) = extract(
        [model.backbone.eval()],
        eval_dataset(cfg.data, loose_records(videos, cfg.data.frames), cfg.eval.clips),
        CPU,
        batch_size=cfg.eval.batch_size,
        workers=0,
    )
    return features


def _numbers(tokens):
    """Return the numbers that the tokens (frames * 16, 3) of counting frames show."""
    bits = tokens.reshape(-1, 16, 3).mean(-1) > 0.5
    return (bits << np.arange(16)).sum(-1)


@pytest.mark.parametrize("clips", [1, 3])
@pytest.mark.parametrize("per_video", [False, True])
def test_the_npz_file_has_the_bytes_of_savez(videos, tmp_path, clips, per_video, monkeypatch):
    """Earlier revisions held everything in memory and wrote it with `np.savez`."""
    monkeypatch.setattr(stored_features, "CHUNK_BYTES", 80)  # several chunks
    monkeypatch.setattr(feature_files, "_ROWS", 4)
    source = _source(tmp_path / "f.npz", f"eval.clips={clips}")
    reason = _run([source], videos, per_video=per_video, format="npz")
    assert reason.startswith("1 of 7 videos do not decode and have no rows in")
    features = _in_memory(videos, source)
    rows = 1 if per_video else clips
    fps = torch.where(features.fps > 0, features.fps, torch.nan)[:, None]
    ends = features.end.amax(1, keepdim=True) if per_video else features.end
    with np.load(tmp_path / "f.npz") as written:
        meta = json.loads(str(written["meta"]))
    assert [failure["uid"] for failure in meta["failed"]] == [f"v3, {'é' * 3}.avi"]
    whole = features.features
    np.savez(
        tmp_path / "before.npz",
        features=(whole.mean(1) if per_video else whole.flatten(0, 1)).numpy(),
        labels=features.labels.repeat_interleave(rows).numpy(),
        uids=np.repeat(np.array(features.uids), rows),
        clip_index=np.full(N - 1, -1) if per_video else np.tile(np.arange(clips), N - 1),
        start_frame=features.start[:, :rows].flatten().numpy(),
        fps=features.fps.repeat_interleave(rows).numpy(),
        start_s=(features.start[:, :rows] / fps).flatten().numpy(),
        end_s=(ends / fps).flatten().numpy(),
        meta=json.dumps(meta),
    )
    assert (tmp_path / "f.npz").read_bytes() == (tmp_path / "before.npz").read_bytes()


def test_npy_and_npz_hold_the_same(videos, tmp_path):
    _run([_source(tmp_path / "f.npz")], videos, format="npz")
    _run([_source(tmp_path / "f.npz")], videos, format="npy")
    features = np.load(tmp_path / "f.npy", mmap_mode="r")
    table = np.load(tmp_path / "f.table.npy", mmap_mode="r")
    meta = json.loads((tmp_path / "f.json").read_text())
    with np.load(tmp_path / "f.npz") as small:
        assert np.array_equal(features, small["features"])
        columns = {"uid": "uids", "label": "labels", "clip": "clip_index"}
        for name in table.dtype.names:
            assert np.array_equal(table[name], small[columns.get(name, name)]), name
        assert meta == json.loads(str(small["meta"]))
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*"))


def test_features_read_back_with_three_lines_of_numpy(videos, tmp_path):
    _run([_source(tmp_path / "f.npy")], videos, format="npy")
    features = np.load(tmp_path / "f.npy", mmap_mode="r")
    table = np.load(tmp_path / "f.table.npy", mmap_mode="r")
    some = features[table["uid"] == "v2, éé.avi"]
    assert isinstance(features, np.memmap) and some.shape == (2, 3)


def test_the_size_decides_the_format(videos, tmp_path, monkeypatch):
    size = (N - 1) * 2 * 3 * 4
    monkeypatch.setattr(feature_files, "LARGE_BYTES", size)
    _run([_source(tmp_path / "f.npz")], videos)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz"]
    monkeypatch.setattr(feature_files, "LARGE_BYTES", size - 1)
    _run([_source(tmp_path / "g.npz")], videos)
    assert sorted(path.name for path in tmp_path.glob("g.*")) == ["g.json", "g.npy", "g.table.npy"]
    # half the bytes
    _run([_source(tmp_path / "h.npz")], videos, half=True)
    assert [path.name for path in tmp_path.glob("h.*")] == ["h.npz"]


def test_tokens_show_the_pixels_of_their_clip(videos, tmp_path):
    """Each frame of a counting video shows its number; clips of 5 frames at stride 2."""
    _run([_source(tmp_path / "f.npy")], videos, tokens=True, stages=("layer1",), format="npy")
    tokens = np.load(tmp_path / "f.layer1.tokens.npy")
    table = np.load(tmp_path / "f.layer1.tokens.table.npy")
    assert tokens.shape == ((N - 1) * 2, 3 * 16, 3) and len(table) == (N - 1) * 2
    for row, entry in zip(tokens, table, strict=True):
        video = int(entry["uid"][1])
        first = 100 * video + entry["start_frame"]
        assert _numbers(row).tolist() == [first, first + 2, first + 4]
    assert table["start_frame"][-2:].tolist() == [0, 20 + 6 - 5]
    assert json.loads((tmp_path / "f.layer1.tokens.json").read_text())["stage"] == "layer1"


def test_a_stage_is_the_mean_of_its_tokens(videos, tmp_path):
    source = _source(tmp_path / "f.npz", scale=2.0)
    _run([source], videos, stages=("layer2", "layer1"))
    _run([source], videos, tokens=True)  # of the last stage
    _run([source], videos)
    pooled = np.load(tmp_path / "f.layer2.npz")["features"]
    tokens = np.load(tmp_path / "f.layer2.tokens.npz")["features"]
    assert tokens.shape == ((N - 1) * 2, 3 * 4, 3)
    assert np.allclose(tokens.mean(1), pooled, atol=1e-6)
    assert np.allclose(np.load(tmp_path / "f.npz")["features"], 2 * pooled, atol=1e-6)
    assert np.load(tmp_path / "f.layer1.npz")["features"].shape == pooled.shape


def test_all_stages_are_a_file_each(videos, tmp_path):
    _run([_source(tmp_path / "f")], videos, stages=("all",), format="npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.layer1", "f.layer2"]


def test_images_are_clips_of_one_frame(tmp_path):
    for n, board in enumerate(counting_frames(3, first=40)):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(board).save(tmp_path / f"images/{n}.png")
    source = _source(tmp_path / "f.npz", "data.frames=1", "eval.clips=1")
    words = {"tokens": True, "stages": ("layer1",)}
    assert _run([source], str(tmp_path / "images"), **words) == ""
    file = np.load(tmp_path / "f.layer1.tokens.npz")
    assert file["features"].shape == (3, 16, 3)
    assert [_numbers(row).item() for row in file["features"]] == [40, 41, 42]
    assert np.isnan(file["start_s"]).all()


@pytest.mark.parametrize("per_video", [False, True])
def test_half_is_the_nearest_float16(videos, tmp_path, per_video):
    """Means over clips are rounded once."""
    for name, half in (("whole", False), ("half", True)):
        source = _source(tmp_path / f"{name}.npz", "eval.clips=3", scale=0.1234567)
        _run([source], videos, half=half, per_video=per_video)
    whole, half = (np.load(tmp_path / f"{name}.npz")["features"] for name in ("whole", "half"))
    assert half.dtype == np.float16
    assert np.array_equal(half, whole.astype(np.float16)) and (half != whole).any()


@pytest.mark.parametrize(
    ("per_video", "said"), [(False, "v0, .avi is 99902"), (True, "v2, éé.avi is 68517.2")]
)
def test_features_beyond_float16_are_refused_with_their_video(videos, tmp_path, per_video, said):
    """The second clip of the first video has 99902, and the mean of its two clips is 62059."""
    source = _source(tmp_path / "f.npz", scale=3e5)
    assert _run([source], videos, half=True, per_video=per_video) == (
        f"--half: a feature of {said}, and float16 ends at 65504; extract without --half"
    )
    assert not (tmp_path / "f.npz").exists()


def test_several_models_share_a_decode(videos, tmp_path, monkeypatch):
    alone = []
    for name, scale in (("a", 1.0), ("b", 2.0)):
        _run([_source(tmp_path / f"{name}.npz", scale=scale)], videos)
        alone.append((tmp_path / f"{name}.npz").read_bytes())
        (tmp_path / f"{name}.npz").unlink()
    sources = [_source(tmp_path / f"{n}.npz", scale=s) for n, s in (("a", 1.0), ("b", 2.0))]
    reads = _recorded_loads(monkeypatch)
    assert "1 of 7 videos" in _run(sources, videos)
    assert [(tmp_path / f"{name}.npz").read_bytes() for name in "ab"] == alone
    assert reads == [N]


def _recorded_loads(monkeypatch):
    """Return a list that gets the number of videos that each loader is asked for."""
    loads = []
    loader = inference.batch_loader

    def recorded(dataset, batches, workers):
        loads.append(sum(len(batch) for batch in batches))
        return loader(dataset, batches, workers)

    monkeypatch.setattr(inference, "batch_loader", recorded)
    return loads


def test_models_of_other_clips_are_refused(videos, tmp_path):
    sources = [_source(tmp_path / "a.npz"), _source(tmp_path / "b.npz", "data.frames=4", name="m")]
    assert _run(sources, videos) == (
        "data.frames=4 of m, and 3 of cells: models of one extraction share their clips; set"
        " data.frames, or extract them one by one"
    )
    sources = [_source(tmp_path / "a.npz"), _source(tmp_path / "b.npz", "data.root=x")]
    with pytest.raises(UserError, match="data.root=x of cells, and "):
        extract_files(sources, "test", FeatureSettings())
    # loose videos are those of no data set
    assert "1 of 7" in _run(sources, videos)


def test_two_models_in_one_file_are_refused(videos, tmp_path):
    sources = [_source(tmp_path / "a.npz"), _source(tmp_path / "a.npz", name="other", scale=2.0)]
    reason = _run(sources, videos)
    assert reason == (
        f"{tmp_path}/a.npz would hold features of several of cells, other; set --output FILE"
    )


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tokens": True, "per_video": True}, "--tokens: tokens belong to a clip"),
        ({"format": "csv"}, "--format csv: choose auto, npz, npy"),
        ({"stages": ("all", "layer1")}, "--stages all,layer1: give names"),
        ({"stages": ("",)}, "--stages : give names"),
        ({"stages": ("layer9",)}, "--stages: cells: the network has no module 'layer9'; its st"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(videos, tmp_path, settings, reason):
    with pytest.raises(UserError) as caught:
        settings = FeatureSettings(videos=videos, **settings)
        extract_files([_source(tmp_path / "f.npz")], "videos", settings)
    assert str(caught.value).startswith(reason) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["npz", "npy", "auto"])
def test_other_features_are_refused_and_overwritten_only_when_asked(videos, tmp_path, format):
    path = tmp_path / f"f.{'npy' if format == 'npy' else 'npz'}"
    _run([_source(path)], videos, format=format)
    before = path.read_bytes()
    other = _source(path, scale=2.0)
    assert _run([other], videos, format=format) == (
        f"{path} holds other features; set --output FILE, or --overwrite"
    )
    # and of another type
    assert "holds other features" in _run([_source(path)], videos, format=format, half=True)
    assert path.read_bytes() == before
    assert "do not decode" in _run([_source(path)], videos, format=format), "the same again"
    assert path.read_bytes() == before
    assert "do not decode" in _run([other], videos, format=format, overwrite=True)
    assert path.read_bytes() != before


@pytest.mark.parametrize("name", ["f.npy", "f.table.npy", "f.json"])
def test_files_of_the_user_are_not_replaced(videos, tmp_path, name):
    (tmp_path / name).write_text('{"mine": 1}')
    assert f"{name} holds other features" in _run([_source(tmp_path / "f.npz")], videos)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_videos_that_all_fail_write_no_file(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.avi").write_bytes(b"")
    reason = _run([_source(tmp_path / "f.npy")], str(tmp_path / "bad"), format="npy")
    assert reason.startswith("no video decodes (") and reason.endswith("the list of videos")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


# kills


def _killed_at(event, act):
    """Run a function in a child process that is killed at the n-th write, rename or deletion.

    Returns:
        Whether it was killed.
    """
    pid = os.fork()
    if pid == 0:
        try:
            left = [event]

            def counted(function):
                def call(*args, **options):
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*args, **options)

                return call

            for owner, name in (
                (os, "replace"),
                (os, "rename"),
                (os, "fsync"),
                (os, "unlink"),
                (os, "rmdir"),
                (stored_features, "_read_into"),
                (feature_files, "to_half"),
                (np, "ascontiguousarray"),
            ):
                setattr(owner, name, counted(getattr(owner, name)))
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "it failed"
    return os.WIFSIGNALED(status)


def _image_folder(path, count):
    """Write images, which a forked process decodes without FFmpeg."""
    path.mkdir(parents=True)
    for n, board in enumerate(counting_frames(count, size=16, first=9)):
        Image.fromarray(board).save(path / f"{n:03}.png")
    return str(path)


def _whole(folder, name):
    files = (f"{name}.npy", f"{name}.table.npy", f"{name}.json")
    return {file: (folder / file).read_bytes() for file in files}


def test_killed_anywhere_it_gives_the_same_bytes(tmp_path, monkeypatch):
    """One kill at each write, rename and deletion, each on top of what the last one left."""
    monkeypatch.setattr(stored_features, "CHUNK_BYTES", 100)
    monkeypatch.setattr(feature_files, "_ROWS", 3)
    images = _image_folder(tmp_path / "images", 10)
    words = ("data.frames=1", "eval.clips=1", "eval.batch_size=3")
    settings = {"stages": ("all",), "format": "npy"}
    assert _run([_source(tmp_path / "whole/f.npy", *words)], images, **settings) == ""
    names = ("f.layer1", "f.layer2")
    whole = {name: _whole(tmp_path / "whole", name) for name in names}
    kills = 0
    for event in range(1, 200):
        if not _killed_at(
            event, lambda: _run([_source(tmp_path / "cut/f.npy", *words)], images, **settings)
        ):
            break
        kills += 1
        for name in names:
            # the features are there whole, with their table and description, or not at all
            if (tmp_path / f"cut/{name}.npy").exists():
                assert _whole(tmp_path / "cut", name) == whole[name], event
    assert 20 < kills < 199
    assert {name: _whole(tmp_path / "cut", name) for name in names} == whole
    assert not list((tmp_path / "cut").glob("*.partial"))
    assert sorted(os.listdir(tmp_path / "cut")) == sorted(os.listdir(tmp_path / "whole"))


def test_killed_while_overwriting_no_file_mixes_old_and_new(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_features, "CHUNK_BYTES", 100)
    words = ("data.frames=1", "eval.clips=1")
    old = _image_folder(tmp_path / "old", 12)
    new = _image_folder(tmp_path / "new", 5)
    _run([_source(tmp_path / "out/f.npy", *words)], old, format="npy")
    _run([_source(tmp_path / "whole/f.npy", *words)], new, format="npy")
    sets = (_whole(tmp_path / "out", "f"), _whole(tmp_path / "whole", "f"))
    shutil.copytree(tmp_path / "out", tmp_path / "before")
    for event in range(1, 100):
        shutil.rmtree(tmp_path / "out")
        shutil.copytree(tmp_path / "before", tmp_path / "out")
        killed = _killed_at(
            event,
            lambda: _run(
                [_source(tmp_path / "out/f.npy", *words)], new, format="npy", overwrite=True
            ),
        )
        if (tmp_path / "out/f.npy").exists():
            assert _whole(tmp_path / "out", "f") in sets, event
        if not killed:
            break
    assert event > 10 and _whole(tmp_path / "out", "f") == sets[1]
