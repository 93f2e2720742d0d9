"""Source frames, clips and crops: videos whose pixels count."""

import numpy as np
import pytest
import torch

from tests.helpers import counting_frames, counting_video, read_numbers
from vidrobust.config import DataConfig
from vidrobust.data import Failure, Record, Source, source_videos
from vidrobust.evaluation.adversarial.targets import crop_places, through_clips, video_units
from vidrobust.evaluation.view_average import average_views

CFG = DataConfig(frames=4, stride=3, short_side=32, size=32, workers=0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("v")
    counts = (40, 7, 1)  # long, shorter than a clip, one frame
    paths = [counting_video(folder / f"{n}.avi", n) for n in counts]
    bad = folder / "bad.avi"
    bad.touch()
    return [Record(f"{i}", str(path), i % 2) for i, path in enumerate([*paths, bad])]


def test_a_source_holds_each_frame_once_and_its_clips_point_to_them(videos):
    found = source_videos(CFG, videos, 5)[0]
    assert isinstance(found, Source) and found.clips.shape == (5, 4)
    numbers = read_numbers(found.frames)
    assert numbers == sorted(set(numbers))
    starts = np.rint(np.linspace(0, 30, 5)).astype(int)
    assert [[numbers[i] for i in clip] for clip in found.clips] == [
        [s, s + 3, s + 6, s + 9] for s in starts
    ]


def test_short_videos_repeat_their_last_frame_and_share_it(videos):
    found = source_videos(CFG, videos, 2)[1]
    assert read_numbers(found.frames) == [0, 3, 6] and found.clips.tolist() == [[0, 1, 2, 2]] * 2
    assert source_videos(CFG, videos, 2)[2].clips.tolist() == [[0, 0, 0, 0]] * 2


@pytest.mark.parametrize("timeout_s", [0.0, 20.0])
def test_a_bad_video_is_a_failure(videos, timeout_s):
    found = source_videos(DataConfig(**(vars(CFG) | {"timeout_s": timeout_s})), videos, 2)
    assert isinstance(found[3], Failure) and "is empty" in found[3].reason
    (unit,) = video_units(lambda x: x, found, [[3]], 1, CPU)
    assert unit.uids == [] and unit.failed[0].uid == "3"


def _source(frames, clips, height=8, width=12):
    record = Record("x", "x", 0)
    return Source(record, 0, np.zeros((frames, height, width, 3), np.uint8), np.array(clips), 25.0)


def test_the_gradient_of_a_frame_is_summed_over_all_clips_and_crops_that_show_it():
    """Logits linear in every pixel a view shows: the gradient counts how often it is shown."""
    source = _source(5, [[0, 1], [1, 2], [1, 4]])
    predict = lambda v: torch.stack([v.flatten(1).sum(1), 0 * v.flatten(1).sum(1)], 1)  # noqa: E731
    for crops in (1, 3):
        x = torch.rand(1, 3, 5, 8, 12, requires_grad=True)
        logits = through_clips(predict, source, crops, 8)(x)
        logits[0, 0].backward()
        shown = x.grad * 3 * crops
        assert shown[0, 0, :, 4, 5].round().tolist() == [
            crops * c for c in (1, 3, 1, 0, 1)
        ]  # all crops show 5
        for column in range(12):
            places = [left for _, left in crop_places(8, 12, 8, crops)]
            times = sum(left <= column < left + 8 for left in places)
            assert shown[0, 0, 1, 4, column].round().item() == 3 * times
        assert (shown[0, :, 3] == 0).all()  # a frame that no clip shows


def test_logits_are_the_mean_over_views():
    source = _source(4, [[0, 1], [2, 3]], 9, 8)
    x = torch.rand(2, 3, 4, 9, 8)
    predict = lambda v: v.flatten(2).mean(2)  # noqa: E731
    expected = torch.stack(
        [
            predict(x[:, :, clip][..., top : top + 6, left : left + 6])
            for clip in ([0, 1], [2, 3])
            for top, left in ((0, 1), (1, 1), (3, 1))
        ]
    ).mean(0)
    assert torch.allclose(through_clips(predict, source, 3, 6)(x), expected, atol=1e-6)


def test_probabilities_are_averaged_as_their_logarithm():
    """The softmax of the average is the mean of the views' softmax, and gradients flow."""
    logits = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    averaged = average_views(logits, "probabilities")
    assert torch.allclose(averaged.softmax(1), logits.softmax(2).mean(1))
    assert torch.allclose(average_views(logits, "logits"), logits.mean(1))
    loss = torch.nn.functional.cross_entropy(averaged, torch.tensor([0, 1, 2]))
    wanted = -logits.softmax(2).mean(1)[[0, 1, 2], [0, 1, 2]].log().mean()
    assert torch.allclose(
        torch.autograd.grad(loss, logits)[0], torch.autograd.grad(wanted, logits)[0]
    )
    far = torch.tensor([[[1e4, 0.0], [0.0, 1e4]]])
    assert torch.allclose(average_views(far, "probabilities").softmax(1), torch.tensor([[0.5] * 2]))


def test_an_attack_on_a_video_averages_its_views_as_asked():
    source = _source(4, [[0, 1], [2, 3]], 8, 8)
    x = torch.rand(2, 3, 4, 8, 8)
    predict = lambda v: 9 * v.flatten(2).mean(2)  # noqa: E731
    views = torch.stack([predict(x[:, :, :2]), predict(x[:, :, 2:])], 1)
    found = through_clips(predict, source, 1, 8, "probabilities")(x)
    assert torch.allclose(found, average_views(views, "probabilities"), atol=1e-6)
    assert not torch.allclose(found, views.mean(1), atol=1e-3)


def test_crops_lie_along_the_longer_side():
    assert crop_places(10, 16, 8, 3) == [(1, 0), (1, 4), (1, 8)] and crop_places(16, 10, 8, 3) == [
        (0, 1),
        (4, 1),
        (8, 1),
    ]
    assert crop_places(10, 16, 8, 1) == [(1, 4)] and crop_places(8, 8, 8, 3) == [(0, 0)] * 3


def test_counting_frames_survive_the_short_side(videos):
    """The helper's board is read after the resize that the unit makes."""
    assert read_numbers(counting_frames(5)) == list(range(5))
    found = source_videos(DataConfig(**(vars(CFG) | {"short_side": 48, "size": 40})), videos, 1)[0]
    assert found.frames.shape[1:3] == (48, 48) and read_numbers(found.frames) == [15, 18, 21, 24]
