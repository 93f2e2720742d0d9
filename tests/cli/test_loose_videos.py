"""Loose videos: features with seconds, and the most probable classes of each clip."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import counting_video, tiny, tiny_ucf101, tool
from vidrobust import checkpoint, config
from vidrobust.data.given import loose_records
from vidrobust.training.loop import train
from vidrobust.utils.errors import UserError

# logits are the means of the first and of the last frame of a clip, and a constant
OWN = """
import torch
from vidrobust.models.input_spec import InputSpec

def network():
    def logits(x):
        frames = 8 * x.mean((1, 3, 4))
        return torch.stack([frames[:, 0], frames[:, -1], torch.full((len(x),), 0.5)], 1)
    return logits, InputSpec(frames=3, stride=2, size=(16, 16), classes=("first", "last", "none"))
"""
MODEL = ("--model", "python:own.py:network", "data.workers=0", "eval.clips=3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    top = tmp_path_factory.mktemp("loose")
    (top / "own.py").write_text(OWN)
    counting_video(top / "clips/long.avi", 25)
    counting_video(top / "clips/deep/short.mp4", 4)
    (top / "clips/notes.txt").write_text("no video")
    return top


def test_a_folder_a_pattern_and_a_file_are_searched(place, tmp_path):
    found = loose_records(str(place / "clips"), 3)
    assert [record.uid for record in found] == ["deep/short.mp4", "long.avi"]
    assert all(record.label == -1 for record in found)
    pattern = loose_records(str(place / "clips/**/*.mp4"), 3)
    assert [record.path for record in pattern] == [str(place / "clips/deep/short.mp4")]
    (tmp_path / "a[1].avi").write_bytes(b"")
    assert loose_records(str(tmp_path / "a[1].avi"), 3)[0].path.endswith("a[1].avi")
    with pytest.raises(UserError, match="no video there; give a file, a folder or a pattern"):
        loose_records(str(place / "none/*.avi"), 3)


def test_images_are_clips_of_one_frame_or_frames_of_a_video(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{number}.png")
    assert [r.uid for r in loose_records(str(tmp_path), 1)] == [
        f"{folder}/{number}.png" for folder in "ab" for number in range(3)
    ]
    assert [r.uid for r in loose_records(str(tmp_path), 3)] == ["a", "b"]


def test_features_have_the_seconds_of_their_clips(place):
    """25 frames at 25 per second: clips of 5 frames begin at 0, 10 and 20, and end 0.2 s later."""
    done = tool("extract_features", *MODEL, "--videos", "clips", "--output", "f.npz", cwd=place)
    assert done.returncode == 0, done.stderr
    file = np.load(place / "f.npz")
    assert file["uids"].tolist() == ["deep/short.mp4"] * 3 + ["long.avi"] * 3
    assert file["start_frame"].tolist() == [0, 0, 0, 0, 10, 20]
    fps = file["fps"][0]
    assert file["start_s"] == pytest.approx(np.array([0, 0, 0, 0, 10, 20]) / fps)
    # four frames at stride 2: 0, 2 and again the last one, 3
    assert file["end_s"] == pytest.approx(np.array([4, 4, 4, 5, 15, 25]) / fps)
    assert (file["labels"] == -1).all() and json.loads(str(file["meta"]))["split"] == "videos"
    words = (*MODEL, "--videos", "clips", "--per-video", "--output", "v.npz")
    done = tool("extract_features", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    whole = np.load(place / "v.npz")
    assert whole["end_s"] == pytest.approx(np.array([4, 25]) / fps)
    assert whole["features"][1] == pytest.approx(file["features"][3:].mean(0), abs=1e-5)


def softmax(values):
    return np.exp(values) / np.exp(values).sum(-1, keepdims=True)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_the_most_probable_classes_of_each_clip(place, average):
    words = ("--videos", "clips", "--top", "2", "--output", "p.jsonl")
    done = tool("predict", *MODEL, *words, f"eval.view_average={average}", cwd=place)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (place / "p.jsonl").open()]
    assert [(row["video"], row["clip"]) for row in rows] == [
        (name, clip) for name in ("deep/short.mp4", "long.avi") for clip in (0, 1, 2, None)
    ]
    clips = rows[4:7]
    file = np.load(place / "f.npz")  # the logits of this model are its features
    logits = file["features"][3:]
    for row, values in zip(clips, logits, strict=True):
        order = np.argsort(-values)[:2]
        assert [name for name, _ in row["classes"]] == [("first", "last", "none")[i] for i in order]
        assert [p for _, p in row["classes"]] == pytest.approx(softmax(values)[order], abs=1e-5)
    mean = logits.mean(0) if average == "logits" else np.log(softmax(logits).mean(0))
    assert rows[7]["classes"][0][1] == pytest.approx(softmax(mean).max(), abs=1e-5)
    assert (rows[5]["start_s"], rows[5]["end_s"]) == pytest.approx(
        (10 / file["fps"][3], 15 / file["fps"][3])
    )
    assert rows[7]["start_s"] == 0 and rows[7]["end_s"] == pytest.approx(25 / file["fps"][3])


def test_a_table_has_a_row_for_each_class_and_people_get_lines(place):
    done = tool("predict", *MODEL, "--videos", "clips/long.avi", "--output", "p.csv", cwd=place)
    assert done.returncode == 0, done.stderr
    table = list(csv.DictReader((place / "p.csv").open()))
    assert len(table) == 4 * 3 and [row["rank"] for row in table[:3]] == ["1", "2", "3"]
    assert sum(float(row["probability"]) for row in table[:3]) == pytest.approx(1, abs=1e-5)
    done = tool("predict", *MODEL, "--videos", "clips/long.avi", cwd=place)
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 4 and lines[0].startswith("clips/long.avi (clip 0, 0.00 to ")
    assert "(all clips, 0.00 to " in lines[3] and lines[3].count("%") == 3


def test_a_supervised_run_names_the_classes_of_its_data_set(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    cfg = config.loads("", tiny(f"data.root={root}", "method.name=supervised"))
    state = checkpoint.read_checkpoint(train(cfg, tmp_path / "run"))
    video = next((root / "videos").rglob("*.avi"))
    words = ("--checkpoint", "run", "--videos", video, "--output", "p.jsonl", "data.workers=0")
    done = tool("predict", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").open()]
    assert {name for row in rows for name, _ in row["classes"]} == {"Alpha", "Beta"}
    assert torch.is_tensor(state["model"]["head.weight"])
    (root / "ucfTrainTestlist/classInd.txt").unlink()
    done = tool("predict", *words, cwd=tmp_path)
    assert done.returncode == 0 and "2 classes are shown as numbers" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--videos", "none"), "no video there"),
        (("--videos", "clips", "--top", "0"), "--top 0: must be at least 1"),
        (("--videos", "clips", "--output", "p.txt"), "must be a .csv or a .jsonl"),
    ],
)
def test_mistakes_are_one_line(place, words, said):
    done = tool("predict", *MODEL, *words, cwd=place)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


def test_a_model_without_a_classifier_is_refused(place):
    words = ("--model", "torchvision:resnet18", "--videos", "clips", "data.workers=0")
    done = tool("predict", *words, cwd=place)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("give its weights, or extract features")


def test_a_folder_of_frames_has_25_frames_a_second(place, tmp_path):
    """A card in frames per second also fits videos that do not say their rate."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "frames/v").mkdir(parents=True)
    for number in range(25):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"frames/v/{number:03}.png")
    words = (*MODEL, "model.input.fps=12.5", "--videos", "frames", "--output", "f.npz")
    done = tool("extract_features", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "and others are unknown: 25 are assumed for data.fps=12.5" in done.stderr
    file = np.load(tmp_path / "f.npz")
    assert file["start_frame"].tolist() == [0, 10, 20] and np.isnan(file["start_s"]).all()


def test_logits_that_are_not_finite_are_reported(place, tmp_path):
    (tmp_path / "own.py").write_text(OWN.replace("0.5)", "float('nan'))"))
    counting_video(tmp_path / "clips/good.avi", 25)
    done = tool("predict", *MODEL, "--videos", "clips", cwd=tmp_path)
    assert done.returncode == 1 and not done.stdout.strip()
    assert "NaN or infinite logits" in done.stderr.strip().splitlines()[-1]


def test_a_video_that_does_not_decode_is_reported_after_the_others(place, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    counting_video(tmp_path / "clips/good.avi", 25)
    (tmp_path / "clips/bad.avi").write_bytes(b"no video")
    done = tool("predict", *MODEL, "--videos", "clips", cwd=tmp_path)
    assert done.returncode == 1 and len(done.stdout.strip().splitlines()) == 4
    assert "videos without a prediction: 1; the first: " in done.stderr
