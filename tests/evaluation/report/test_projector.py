"""TensorBoard's projector shows features of test videos with their classes and thumbnails."""

import dataclasses
import importlib

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import read_numbers, tiny, tiny_ucf101, tool
from vidrobust import config
from vidrobust.data import build_records
from vidrobust.evaluation.report.projector import write_projector
from vidrobust.models.feature_store import Features
from vidrobust.utils.errors import UserError

HOSTILE = "<script>alert(1)</script>\t\n\u202eAlpha\ud800"


@pytest.fixture
def cfg(tmp_path):
    tiny_ucf101(tmp_path / "data", test=3)
    return config.loads("", tiny(f"data.root={tmp_path / 'data'}", "data.size=28"))


def _features(records, dims=5):
    torch.manual_seed(0)
    n = len(records)
    return Features(
        torch.randn(n, 2, dims),
        labels=torch.tensor([record.label for record in records]),
        index=torch.arange(n),
        start=torch.zeros(n, 2),
        fps=torch.full((n,), 25.0),
        uids=[record.uid for record in records],
        failed=[],
    )


def _rows(path):
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_each_video_has_its_features_class_and_thumbnail(cfg, tmp_path):
    records, classes = build_records(cfg.data, "test")
    features = _features(records)
    write_projector(cfg, features, records, classes, tmp_path / "out")
    folder = tmp_path / "out/tensorboard"
    tensors = np.array(_rows(folder / "tensors.tsv"), float)
    assert np.abs(tensors - features.features.mean(1).numpy()).max() < 1e-5
    titles, *rows = _rows(folder / "metadata.tsv")
    assert titles == ["class", "video"]
    assert rows == [[classes[record.label], record.uid] for record in records]
    sprite = np.array(Image.open(folder / "sprite.png"))
    assert sprite.shape == (96, 96, 3)
    # six videos in rows of three; each shows a frame of its own numbers
    tiles = [sprite[32 * r : 32 * r + 32, 32 * c : 32 * c + 32] for r in range(2) for c in range(3)]
    numbers = read_numbers(np.stack(tiles))
    for record, number in zip(records, numbers, strict=True):
        clip = int(record.uid.split("_g")[1][:2]) - 1
        first = 1000 * record.label + 50 * clip
        assert first <= number < first + 20
    assert not sprite[64:].any()


def test_tensorboard_reads_the_files(cfg, tmp_path):
    records, classes = build_records(cfg.data, "test")
    write_projector(cfg, _features(records), records, classes, tmp_path / "out")
    folder = tmp_path / "out/tensorboard"
    text_format = pytest.importorskip("google.protobuf.text_format")
    messages = pytest.importorskip("tensorboard.plugins.projector.projector_config_pb2")
    projector = text_format.Parse(
        (folder / "projector_config.pbtxt").read_text(), messages.ProjectorConfig()
    )
    (embedding,) = projector.embeddings
    for name in (embedding.tensor_path, embedding.metadata_path, embedding.sprite.image_path):
        assert (folder / name).is_file()
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    # a call that was killed before the last file begins anew
    (folder / "projector_config.pbtxt").unlink()
    write_projector(cfg, _features(records), records, classes, tmp_path / "out")
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    assert (folder / "projector_config.pbtxt").is_file()


def test_files_that_are_complete_are_not_written_again(cfg, tmp_path):
    records, classes = build_records(cfg.data, "test")
    write_projector(cfg, _features(records), records, classes, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/tensorboard").iterdir()}
    write_projector(cfg, _features(records), records, classes, tmp_path / "out")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/tensorboard").iterdir()}
    assert after == before


def test_names_of_classes_stay_in_their_cells(cfg, tmp_path):
    records, _ = build_records(cfg.data, "test")
    records = [dataclasses.replace(record, uid=f"{record.uid}\r\x1b") for record in records]
    features = _features(records)
    features.labels[-1] = -1
    write_projector(cfg, features, records, [HOSTILE, "Beta"], tmp_path / "out")
    rows = _rows(tmp_path / "out/tensorboard/metadata.tsv")
    assert [len(row) for row in rows] == [2] * 7
    assert all(cell.isprintable() for row in rows for cell in row)
    assert rows[1][0] == "<script>alert(1)</script>\\t\\n\\u202eAlpha\\ud800"
    assert rows[6][0] == "unknown"


def test_the_number_of_videos_is_bounded_and_damaged_features_are_left_out(cfg, tmp_path):
    records, classes = build_records(cfg.data, "test")
    features = _features(records)
    features.features[1, 0, 0] = torch.nan
    cfg = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, embeddings=4))
    write_projector(cfg, features, records, classes, tmp_path / "out")
    rows = _rows(tmp_path / "out/tensorboard/metadata.tsv")[1:]
    uids = [record.uid for record in records]
    assert len(rows) == 4 and uids[1] not in [row[1] for row in rows]
    cfg = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, embeddings=0))
    write_projector(cfg, features, records, classes, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_evaluation_writes_them_and_overwrite_deletes_them(tmp_path):
    tiny_ucf101(tmp_path / "data")
    (tmp_path / "config.yaml").write_text("data: {root: data}")
    arguments = ["--cfg", "config.yaml", "--output-dir", "run", *tiny("train.epochs=1")]
    assert tool("train_net", *arguments, "eval.name=all", cwd=tmp_path).returncode == 0
    assert (tmp_path / "run/eval/all/tensorboard/sprite.png").is_file()
    # an evaluation that ends early has spent no time on them
    command = ["--checkpoint", "run", "eval.name=early", "eval.corruption.names=[contrast]"]

    def killed(*_):
        raise UserError("killed")

    with pytest.MonkeyPatch.context() as patch:
        # the package exports a function of the name of this module
        module = importlib.import_module("vidrobust.evaluation.evaluate")
        patch.setattr(module, "evaluate_corruptions", killed)
        done = tool("test_net", *command, cwd=tmp_path)
    assert "killed" in done.stderr and not (tmp_path / "run/eval/early/tensorboard").exists()
    done = tool("train_net", *arguments, "--overwrite", "eval.enabled=false", cwd=tmp_path)
    assert done.returncode == 0 and "stay" not in done.stderr, done.stderr
    assert not (tmp_path / "run/eval").exists()
