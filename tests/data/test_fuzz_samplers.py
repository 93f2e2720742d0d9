"""Clip samplers compared with a double loop over clips and frames, for random videos and specs."""

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vidrobust.data import EVAL_SAMPLERS, TRAIN_SAMPLERS, ClipSpec

FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=300,
    suppress_health_check=list(HealthCheck),
)
COUNTS = st.one_of(st.integers(1, 40), st.integers(1, 5000))
SPECS = st.builds(
    ClipSpec,
    frames=st.integers(1, 20),
    stride=st.integers(1, 12),
    clips=st.integers(1, 6),
    policy=st.sampled_from(["repeat_last", "loop", "error"]),
)
SEEDS = st.integers(0, 2**32)


def _strided(start: int, num_frames: int, spec: ClipSpec) -> list[int]:
    """Return the frames of one clip, one by one."""
    frames = []
    for t in range(spec.frames):
        index = start + t * spec.stride
        if index >= num_frames:
            index = index % num_frames if spec.policy == "loop" else num_frames - 1
        frames.append(index)
    return frames


def _sample(sampler, num_frames: int, spec: ClipSpec, seed: int) -> list[list[int]] | None:
    """Return the clips, or None if the video is refused, which must then be too short."""
    try:
        clips = sampler(num_frames, spec, np.random.default_rng(seed))
    except ValueError as error:
        assert spec.policy == "error" and f"the video has {num_frames} frames, a clip spans" in str(
            error
        )
        return None
    assert clips.dtype == np.int64 and clips.shape == (spec.clips, spec.frames)
    again = sampler(num_frames, spec, np.random.default_rng(seed))
    assert (clips == again).all()  # of the seed alone
    return clips.tolist()


def _too_short(num_frames: int, spec: ClipSpec) -> bool:
    return spec.policy == "error" and num_frames < 1 + (spec.frames - 1) * spec.stride


@FUZZ
@given(COUNTS, SPECS, SEEDS)
@example(5, ClipSpec(4, 2, 2, "loop"), 0)
@example(1, ClipSpec(16, 2), 0)
def test_random_clips_are_strided_from_starts_that_fit(num_frames, spec, seed):
    clips = _sample(TRAIN_SAMPLERS["random"], num_frames, spec, seed)
    assert (clips is None) == _too_short(num_frames, spec)
    room = max(0, num_frames - 1 - (spec.frames - 1) * spec.stride)
    for clip in clips or ():
        assert 0 <= clip[0] <= room
        assert clip == _strided(clip[0], num_frames, spec)


@FUZZ
@given(COUNTS, SPECS)
@example(12, ClipSpec(3, 2, 3))
@example(2**40, ClipSpec(16, 2, 10))
@example(30, ClipSpec(1, 1, 15))
def test_uniform_clips_are_evenly_spread_from_end_to_end(num_frames, spec):
    clips = _sample(EVAL_SAMPLERS["uniform"], num_frames, spec, 0)
    assert (clips is None) == _too_short(num_frames, spec)
    room = max(0, num_frames - 1 - (spec.frames - 1) * spec.stride)
    for number, clip in enumerate(clips or ()):
        start = room // 2
        if spec.clips > 1:  # the exact quotient, rounded half to even
            whole, rest = divmod(number * room, spec.clips - 1)
            start = whole + (
                2 * rest > spec.clips - 1 or (2 * rest == spec.clips - 1 and whole % 2 == 1)
            )
        assert clip == _strided(start, num_frames, spec)


@FUZZ
@given(COUNTS, SPECS, SEEDS, st.booleans())
@example(3, ClipSpec(5), 0, False)
@example(3, ClipSpec(5, policy="loop"), 0, True)
@example(122, ClipSpec(14), 0, False)
def test_segments_give_one_frame_each(num_frames, spec, seed, random):
    samplers = TRAIN_SAMPLERS if random else EVAL_SAMPLERS
    clips = _sample(samplers["segment"], num_frames, spec, seed)
    assert (clips is None) == (spec.policy == "error" and num_frames < spec.frames)
    for clip in clips or ():
        for t, index in enumerate(clip):
            low, high = num_frames * t // spec.frames, num_frames * (t + 1) // spec.frames
            if num_frames < spec.frames:
                assert index == (
                    t % num_frames if spec.policy == "loop" else min(t, num_frames - 1)
                )
            elif random:
                assert low <= index < high
            else:
                assert index == (low + high) // 2


@FUZZ
@given(COUNTS, SPECS, SEEDS, st.booleans())
@example(12, ClipSpec(2, 2, 3), 0, False)
def test_dense_clips_stand_back_to_back(num_frames, spec, seed, random):
    samplers = TRAIN_SAMPLERS if random else EVAL_SAMPLERS
    clips = _sample(samplers["dense"], num_frames, spec, seed)
    assert (clips is None) == _too_short(num_frames, spec)
    if clips is None:
        return
    span = 1 + (spec.frames - 1) * spec.stride
    room = num_frames - spec.clips * span
    if room < 0:
        assert clips == _sample(EVAL_SAMPLERS["uniform"], num_frames, spec, 0)
        return
    assert 0 <= clips[0][0] <= room
    assert random or clips[0][0] == room // 2
    for number, clip in enumerate(clips):
        assert clip == _strided(clips[0][0] + number * span, num_frames, spec)


@FUZZ
@given(COUNTS, SPECS, SEEDS, st.sampled_from(["interval_uniform", "interval_decreasing"]))
@example(11, ClipSpec(2, 1, 2), 0, "interval_decreasing")
def test_interval_pairs_are_two_strided_clips(num_frames, spec, seed, name):
    if spec.clips != 2:
        with pytest.raises(ValueError, match=f"two clips of a video, not {spec.clips}"):
            TRAIN_SAMPLERS[name](num_frames, spec, np.random.default_rng(seed))
        return
    clips = _sample(TRAIN_SAMPLERS[name], num_frames, spec, seed)
    assert (clips is None) == _too_short(num_frames, spec)
    room = max(0, num_frames - 1 - (spec.frames - 1) * spec.stride)
    for clip in clips or ():
        assert 0 <= clip[0] <= room
        assert clip == _strided(clip[0], num_frames, spec)


@FUZZ
@given(st.integers(-(2**40), 0), SPECS, st.sampled_from([*TRAIN_SAMPLERS, *EVAL_SAMPLERS]))
def test_a_video_without_frames_is_refused(num_frames, spec, name):
    sampler = TRAIN_SAMPLERS.get(name) or EVAL_SAMPLERS[name]
    with pytest.raises(ValueError, match="has no clip|two clips of a video"):
        sampler(num_frames, spec, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["frames", "stride", "clips"])
@pytest.mark.parametrize("value", [0, -1, 2.5, 2.0, True, "2", None, float("nan")])
def test_a_specification_has_whole_numbers_of_at_least_one(name, value):
    with pytest.raises(ValueError, match=f"{name}=.*must be (a whole number|at least 1)"):
        ClipSpec(**{name: value})


def test_numbers_of_numpy_are_whole_numbers():
    assert ClipSpec(frames=np.int64(3)).span == 5
