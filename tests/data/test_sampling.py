import numpy as np
import pytest

from vidrobust.data import ClipSpec, random_clips, uniform_clips


def test_drawn_examples_of_the_docstrings():
    assert uniform_clips(12, ClipSpec(3, 2)).tolist() == [[3, 5, 7]]
    assert uniform_clips(12, ClipSpec(3, 2, clips=3)).tolist() == [[0, 2, 4], [4, 6, 8], [7, 9, 11]]


def test_uniform_clips_touch_both_ends_and_differ():
    clips = uniform_clips(100, ClipSpec(8, 3, clips=5))
    assert clips[0, 0] == 0 and clips[-1, -1] == 99
    assert len(set(clips[:, 0].tolist())) == 5
    assert (np.diff(clips, axis=1) == 3).all()


def test_random_clips_reach_every_start_and_no_other():
    spec = ClipSpec(4, 2, clips=50)
    starts = {int(c[0]) for seed in range(20) for c in random_clips(10, spec, np.random.default_rng(seed))}
    assert starts == {0, 1, 2, 3}


@pytest.mark.parametrize(("policy", "expected"), [("repeat_last", [0, 2, 4, 4]), ("loop", [0, 2, 4, 1])])
def test_a_short_video_follows_the_policy(policy, expected):
    spec = ClipSpec(4, 2, policy=policy)
    assert uniform_clips(5, spec).tolist() == [expected]
    assert random_clips(5, spec, np.random.default_rng(0)).tolist() == [expected]


def test_policy_error_and_empty_video_raise():
    with pytest.raises(ValueError, match="5 frames, a clip spans 7"):
        uniform_clips(5, ClipSpec(4, 2, policy="error"))
    with pytest.raises(ValueError, match="0 frames"):
        uniform_clips(0, ClipSpec(4, 2))


@pytest.mark.parametrize("bad", [{"frames": 0}, {"stride": 0}, {"clips": 0}, {"policy": "wrap"}])
def test_a_spec_is_checked(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ClipSpec(**bad)


def test_an_image_is_one_frame():
    assert uniform_clips(1, ClipSpec(1, 1, clips=2)).tolist() == [[0], [0]]
    assert uniform_clips(1, ClipSpec(4, 2)).tolist() == [[0, 0, 0, 0]]


def test_property_indices_are_within_the_video_and_in_order():
    rng = np.random.default_rng()
    for _ in range(300):
        n, spec = int(rng.integers(1, 60)), ClipSpec(*(int(v) for v in rng.integers(1, 9, 3)))
        for clips in (random_clips(n, spec, rng), uniform_clips(n, spec)):
            assert clips.shape == (spec.clips, spec.frames) and clips.dtype == np.int64
            assert clips.min() >= 0 and clips.max() < n, (n, spec)
            assert (np.diff(clips, axis=1) >= 0).all(), (n, spec)
            if n >= spec.span:
                assert (np.diff(clips, axis=1) == spec.stride).all(), (n, spec)
