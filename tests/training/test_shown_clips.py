"""TensorBoard shows clips of a run, which is the same run with and without them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import REPO, tiny
from tests.processes import TWO_RANKS, run
from tests.training.helpers import equal, tiny_config, train_state
from vidrobust.training import shown_clips
from vidrobust.training.shown_clips import ShownClips, grid
from vidrobust.utils.logging import Metrics

ADV = ["method.adversary.name=clae", "method.adversary.start=random"]


def shown(out):
    """Return tag -> step -> the frames (T, H, W, 3) that TensorBoard shows."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0})
    accumulator.Reload()
    return {
        tag: {event.step: _frames(event.encoded_image_string) for event in accumulator.Images(tag)}
        for tag in accumulator.Tags()["images"]
    }


def _frames(encoded):
    picture = Image.open(io.BytesIO(encoded))
    frames = []
    for number in range(getattr(picture, "n_frames", 1)):
        picture.seek(number)
        frames.append(np.array(picture.convert("RGB")))
    return np.stack(frames)


def test_a_run_shows_views_and_adversarial_views_and_its_weights_do_not_change(ucf, tmp_path):
    states = {}
    for clips in (0, 2):
        cfg = tiny_config(ucf, *ADV, f"train.shown_clips={clips}")
        states[clips] = train_state(cfg, tmp_path / str(clips))
    for key in states[0]:
        if key != "config":
            assert equal(states[0][key], states[2][key]), key
    assert shown(tmp_path / "0") == {}
    pictures = shown(tmp_path / "2")
    assert set(pictures) == {"clips/views", "clips/adversarial linf"}
    # at least the first and the last step; ends of epochs if they cost little
    assert {0, 3} <= set(pictures["clips/views"]) <= {0, 1, 3}
    # two clips of two views; clip, adversarial view and difference
    assert pictures["clips/views"][0].shape == (2, 34, 34, 3)
    assert pictures["clips/adversarial linf"][0].shape == (2, 34, 52, 3)


def test_images_are_still_pictures(ucf, tmp_path):
    train_state(tiny_config(ucf, "data.frames=1", "train.max_steps=1"), tmp_path)
    assert shown(tmp_path)["clips/views"][0].shape == (1, 52, 34, 3)


def test_a_resumed_run_shows_each_step_once(ucf, tmp_path):
    cfg = tiny_config(ucf, "train.checkpoint_every=2", "train.keep=9")
    train_state(cfg, tmp_path)
    train_state(cfg, tmp_path, tmp_path / "checkpoints/step_00000002.pt")
    steps = set(shown(tmp_path)["clips/views"])
    assert {0, 3} <= steps <= {0, 1, 3}


def test_only_the_first_rank_writes_pictures(ucf, tmp_path):
    (tmp_path / "page.yaml").write_text("")
    command = [*TWO_RANKS, REPO / "tools/train_net.py", "--cfg", "page.yaml", "--output-dir", "out"]
    words = tiny("eval.enabled=false", "device=cpu", f"data.root={ucf}", *ADV)
    done = run([*command, *words], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out/tensorboard").glob("events*"))) == 1
    assert {0, 3} <= set(shown(tmp_path / "out")["clips/adversarial linf"])


def test_the_first_column_is_what_was_attacked_and_the_last_its_change(tmp_path):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 4, 10, 12)
    x_adv = (x + 0.01 * torch.randn_like(x).sign()).clamp(0, 1)
    views = shown_clips.RecordedViews("linf", x, x_adv)
    pixels = grid(shown_clips._attacked_rows(views))
    assert pixels.shape == (4, 22, 40, 3)
    assert np.abs(pixels[:, :10, :12] / 255 - x[0].permute(1, 2, 3, 0).numpy()).max() < 1 / 255
    difference = pixels[:, :10, 28:40]
    assert difference.max() == 255 and difference.min() == 0


def test_pictures_stay_small():
    clip = torch.rand(3, 16, 112, 199)
    assert grid([[clip] * 6] * 8).shape == (8, 8 * 47 - 2, 6 * 82 - 2, 3)
    assert grid([[torch.full((3, 1, 1, 1), torch.nan)]]).tolist() == [[[[0, 0, 0]]]]


def test_turns_are_bounded_and_end_when_they_take_too_long():
    shows = object.__new__(ShownClips)
    shows.clips = 1
    shows.total = 10000
    shows.per_epoch = 10
    shows.every = 10 * -(-1000 // shown_clips._PICTURES)
    shows.began = -1e9
    shows.spent_s = 1.0
    assert sum(shows._is_turn(step) for step in range(10000)) == 1 + shown_clips._PICTURES
    shows.spent_s = 1e9
    assert [step for step in range(10000) if shows._is_turn(step)] == [0, 9999]


def test_a_picture_keeps_its_frames_and_repeats(tmp_path):
    metrics = Metrics(tmp_path, 0)
    frames = np.stack([np.full((8, 9, 3), value, np.uint8) for value in (0, 90, 255)])
    metrics.write_clips("<b>\x1b tag", frames, 5)
    metrics.close()
    (frames_back,) = (steps[5] for steps in shown(tmp_path).values())
    assert (frames_back == frames).all()
