import numpy as np
import pytest
from torchvision.datasets.video_utils import VideoClips

from vidrobust.data import (
    EVAL_SAMPLERS,
    TRAIN_SAMPLERS,
    ClipSpec,
    dense_clips,
    interval_pairs,
    random_clips,
    sampled,
    segment_clips,
    uniform_clips,
)


class Fixed:
    """A generator that returns given numbers."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def integers(self, *bounds, size=None):
        return self.draws.pop(0)

    def choice(self, n, p):
        return self.draws.pop(0)

    def permutation(self, x):
        return x


def drawn(clips, num_frames=12):
    """Return clips as the diagrams in docstrings show them, one string per clip."""
    return [
        " ".join("x" if n in clip else "." for n in range(num_frames)) for clip in clips.tolist()
    ]


@pytest.mark.parametrize(
    ("sampler", "clips"),
    [
        (random_clips, random_clips(12, ClipSpec(3, 2, 2), Fixed(np.array([2, 7])))),
        (uniform_clips, uniform_clips(12, ClipSpec(3, 2))),
        (uniform_clips, uniform_clips(12, ClipSpec(3, 2, 3))),
        (segment_clips, segment_clips(12, ClipSpec(3, 2))),
        (segment_clips, segment_clips(12, ClipSpec(3, 2), Fixed(np.array([[0, 6, 11]])))),
        (dense_clips, dense_clips(12, ClipSpec(2, 2, 3))),
        (interval_pairs, interval_pairs(12, ClipSpec(3, 2, 2), Fixed(5, 1))),
    ],
)
def test_the_diagrams_in_docstrings_are_correct(sampler, clips):
    for line in drawn(clips):
        assert line in sampler.__doc__


def test_uniform_clips_touch_both_ends_and_differ():
    clips = uniform_clips(100, ClipSpec(8, 3, clips=5))
    assert clips[0, 0] == 0 and clips[-1, -1] == 99
    assert len(set(clips[:, 0].tolist())) == 5
    assert (np.diff(clips, axis=1) == 3).all()


def test_random_clips_reach_every_start_and_no_other():
    spec = ClipSpec(4, 2, clips=50)
    starts = {
        int(c[0]) for seed in range(20) for c in random_clips(10, spec, np.random.default_rng(seed))
    }
    assert starts == {0, 1, 2, 3}


def test_segments_are_equal_and_each_gives_one_frame():
    spec = ClipSpec(frames=7, clips=2000)
    clips = segment_clips(24, spec, np.random.default_rng())
    for t in range(7):
        low, high = 24 * t // 7, 24 * (t + 1) // 7
        assert set(clips[:, t].tolist()) == set(
            range(low, high)
        )  # all of the segment, nothing else
    assert (np.diff(clips, axis=1) > 0).all()
    assert (clips[0] != clips[1]).any()  # clips are drawn apart


def test_segments_of_a_video_with_fewer_frames_follow_the_policy():
    assert segment_clips(3, ClipSpec(5)).tolist() == [[0, 1, 2, 2, 2]]
    assert segment_clips(3, ClipSpec(5, policy="loop")).tolist() == [[0, 1, 2, 0, 1]]
    assert segment_clips(5, ClipSpec(5, policy="error")).tolist() == [[0, 1, 2, 3, 4]]
    with pytest.raises(ValueError, match="4 frames, a clip spans 5"):
        segment_clips(4, ClipSpec(5, policy="error"))


def test_dense_clips_stand_back_to_back_anywhere_they_fit():
    spec = ClipSpec(4, 2, clips=3)  # spans 7, block of 21
    firsts = set()
    for seed in range(60):
        clips = dense_clips(24, spec, np.random.default_rng(seed))
        assert (np.diff(clips[:, 0]) == 7).all() and clips.max() < 24
        firsts.add(int(clips[0, 0]))
    assert firsts == {0, 1, 2, 3}
    assert (dense_clips(15, spec) == uniform_clips(15, spec)).all()  # too short for the block


@pytest.mark.parametrize("density", ["uniform", "decreasing"])
def test_intervals_follow_the_configured_density(density):
    """Compared with the closed form, within four standard deviations; room is 9."""
    spec, draws, rng = ClipSpec(2, 1, 2), 4000, np.random.default_rng()
    starts = np.array([interval_pairs(11, spec, rng, density)[:, 0] for _ in range(draws)])
    counts = np.bincount(np.abs(starts[:, 0] - starts[:, 1]), minlength=10)
    weight = np.ones(10) if density == "uniform" else np.arange(10, 0, -1)
    expected = draws * weight / weight.sum()
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected) + 1).all(), counts
    first = (starts[:, 0] < starts[:, 1]).sum() / (starts[:, 0] != starts[:, 1]).sum()
    assert 0.45 < first < 0.55  # either clip comes first
    longest = starts[np.abs(starts[:, 0] - starts[:, 1]) == 9]
    assert set(longest.ravel().tolist()) == {0, 9}


def test_interval_pairs_need_two_clips():
    with pytest.raises(ValueError, match="two clips of a video, not 3"):
        interval_pairs(30, ClipSpec(4, 2, 3), np.random.default_rng())


@pytest.mark.parametrize(
    ("policy", "expected"), [("repeat_last", [0, 2, 4, 4]), ("loop", [0, 2, 4, 1])]
)
def test_a_short_video_follows_the_policy(policy, expected):
    spec = ClipSpec(4, 2, clips=2, policy=policy)
    for sampler in (
        *(s for name, s in TRAIN_SAMPLERS.items() if name != "segment"),
        EVAL_SAMPLERS["uniform"],
    ):
        assert sampler(5, spec, np.random.default_rng()).tolist() == [expected] * 2


def test_policy_error_and_empty_video_raise():
    for sampler in (*TRAIN_SAMPLERS.values(), *EVAL_SAMPLERS.values()):
        with pytest.raises(ValueError, match="3 frames, a clip spans"):
            sampler(3, ClipSpec(4, 2, clips=2, policy="error"), np.random.default_rng())
        with pytest.raises(ValueError, match="0 frames"):
            sampler(0, ClipSpec(4, 2, clips=2), np.random.default_rng())


@pytest.mark.parametrize("bad", [{"frames": 0}, {"stride": 0}, {"clips": 0}, {"policy": "wrap"}])
def test_invalid_clip_specs_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ClipSpec(**bad)


@pytest.mark.parametrize("name", [*TRAIN_SAMPLERS, *EVAL_SAMPLERS])
def test_an_image_is_one_frame(name):
    sampler = TRAIN_SAMPLERS.get(name) or EVAL_SAMPLERS[name]
    assert sampler(1, ClipSpec(1, 1, clips=2), np.random.default_rng()).tolist() == [[0], [0]]
    assert (
        sampler(1, ClipSpec(4, 2, clips=2), np.random.default_rng()).tolist() == [[0, 0, 0, 0]] * 2
    )


@pytest.mark.parametrize("name", [*TRAIN_SAMPLERS, *EVAL_SAMPLERS])
def test_property_indices_are_within_the_video_and_in_order(name):
    sampler, rng = TRAIN_SAMPLERS.get(name) or EVAL_SAMPLERS[name], np.random.default_rng()
    for _ in range(200):
        n, (frames, stride, clips) = int(rng.integers(1, 60)), rng.integers(1, 9, 3).tolist()
        spec = ClipSpec(frames, stride, 2 if name.startswith("interval") else clips)
        indices = sampler(n, spec, rng)
        assert indices.shape == (spec.clips, frames) and indices.dtype == np.int64, (n, spec)
        assert indices.min() >= 0 and indices.max() < n, (n, spec)
        assert (np.diff(indices, axis=1) >= 0).all(), (n, spec)
        if n >= spec.span and name != "segment":
            assert (np.diff(indices, axis=1) == stride).all(), (n, spec)


def test_halves_are_rounded_to_even():
    """Rounding is that of floating-point numbers.

    Of 3 clips in a room of 1 or 3, the middle one would start at a half.
    """
    for num_frames, starts in ((2, [0, 0, 1]), (4, [0, 2, 3]), (6, [0, 2, 5]), (8, [0, 4, 7])):
        assert uniform_clips(num_frames, ClipSpec(1, 1, 3))[:, 0].tolist() == starts


# --- Frames per second ---


@pytest.mark.parametrize("fps", [10.0, 23.976, 25.0, 29.97, 30.0, 50.0, 60.0])
@pytest.mark.parametrize("wanted", [5.0, 15.0, 30.0])
@pytest.mark.parametrize("frames", [1, 7, 250])
def test_frames_are_those_of_torchvisions_resampling(fps, wanted, frames):
    """Against VideoClips._resample_video_idx; the last frame is the last that still begins."""
    everything = lambda num_frames, spec, rng: np.arange(num_frames)[None]  # noqa: E731
    found = sampled(everything, frames, fps, ClipSpec(fps=wanted), np.random.default_rng(0))[0]
    theirs = VideoClips._resample_video_idx(len(found), fps, wanted)
    if isinstance(theirs, slice):
        theirs = np.arange(frames)[theirs]
    if frames > 1:
        assert found.tolist() == np.asarray(theirs)[: len(found)].tolist()
        assert frames - fps / wanted - 1 <= found[-1] < frames
    else:
        assert found.tolist() == [0]


def test_a_clip_at_15_frames_a_second_of_a_video_at_25():
    spec = ClipSpec(frames=4, stride=2, clips=1, fps=15.0)
    clips = sampled(EVAL_SAMPLERS["uniform"], 12, 25.0, spec, np.random.default_rng(0))
    # of 0 1 3 5 6 8 10 11 the centre clip at stride 2 is the first, third, fifth and seventh
    assert clips.tolist() == [[0, 3, 6, 10]]


def test_an_unknown_rate_is_taken_to_be_25():
    spec = ClipSpec(frames=4, fps=15.0)
    sampler, rng = EVAL_SAMPLERS["uniform"], np.random.default_rng(0)
    unknown = sampled(sampler, 12, 0.0, spec, rng)
    assert unknown.tolist() == sampled(sampler, 12, 25.0, spec, rng).tolist()
    still = sampled(
        EVAL_SAMPLERS["uniform"], 1, 0.0, ClipSpec(frames=1, fps=15.0), np.random.default_rng(0)
    )
    assert still.tolist() == [[0]]
