import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tvf

from vidrobust.views import AugmentSpec, apply_draws, augment, draw_view, faded, to_float

_STILL = [1.0, 1, 1, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0]


def _draws(spec, n, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor([draw_view(spec, 40, 50, rng).columns for _ in range(n)])


@pytest.mark.parametrize("frames", [1, 5])
def test_all_frames_share_the_random_parameters(frames):
    """A still video stays still: all frames of a view are the same picture."""
    x = torch.rand(30, 3, 1, 24, 24).expand(-1, -1, frames, -1, -1)
    out = apply_draws(x, _draws(AugmentSpec(solarize=0.3), 30))
    assert torch.allclose(out[:, :, :1].expand_as(out), out, atol=1e-6)
    assert out.min() >= 0 and out.max() <= 1 and not torch.equal(out, x)


def test_a_clip_does_not_depend_on_its_batch():
    x, draws = torch.rand(12, 3, 2, 16, 16), _draws(AugmentSpec(solarize=0.3), 12)
    whole = apply_draws(x, draws)
    for i in range(12):
        assert torch.allclose(apply_draws(x[i : i + 1], draws[i : i + 1])[0], whole[i], atol=1e-6)


def test_input_clips_are_not_modified():
    x = torch.rand(4, 3, 2, 16, 16)
    before = x.clone()
    apply_draws(x, _draws(AugmentSpec(jitter_prob=1.0), 4))
    assert torch.equal(x, before)


def test_to_float_converts_the_loaders_layout_to_that_of_models():
    frames = torch.randint(0, 256, (2, 3, 4, 5, 6, 3), dtype=torch.uint8)
    x = to_float(frames)
    assert x.shape == (2, 3, 3, 4, 5, 6) and x.dtype == torch.float32 and x.is_contiguous()
    assert torch.equal(x[1, 2, 0, 3], frames[1, 2, 3, :, :, 0].float() / 255)


def test_boxes_stay_inside_the_frame_and_have_the_requested_area():
    rng, spec = np.random.default_rng(), AugmentSpec(size=24, scale=(0.2, 0.6))
    for _ in range(300):
        d = draw_view(spec, 40, 50, rng)
        assert d.top >= 0 and d.left >= 0 and d.top + d.height <= 40 and d.left + d.width <= 50
        assert 0.15 < d.height * d.width / 2000 < 0.65
        assert 0.6 < d.width / d.height < 1.65


def test_boxes_that_never_fit_fall_back_to_the_centre():
    d = draw_view(AugmentSpec(scale=(1, 1)), 10, 200, np.random.default_rng(0))
    assert (d.height, d.width) == (10, 13) and d.left == 93


def test_centre_view_uses_no_random_numbers():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    draw = draw_view(AugmentSpec(size=24, center=0.6), 40, 50, rng)
    assert (draw.top, draw.left, draw.height, draw.width) == (8, 13, 24, 24)
    assert rng.bit_generator.state == before
    x = torch.rand(1, 3, 2, 24, 24)
    assert apply_draws(x, torch.tensor([draw.columns])) is x


def test_shift_moves_the_centre_uniformly_in_all_directions():
    spec = AugmentSpec(size=32, center=1.0, shift=4)
    rng = np.random.default_rng(0)
    draws = [draw_view(spec, 32, 32, rng) for _ in range(2000)]
    assert {(d.height, d.width) for d in draws} == {(32, 32)}
    for offsets in ([d.top for d in draws], [d.left for d in draws]):
        counts = np.bincount(np.array(offsets) + 4, minlength=9)
        assert len(counts) == 9 and counts.min() > 2000 / 9 / 1.4
    assert abs(np.corrcoef([d.top for d in draws], [d.left for d in draws])[0, 1]) < 0.1
    half = AugmentSpec(size=32, center=0.5, shift=4)
    larger = [draw_view(half, 256, 320, rng) for _ in range(200)]
    # one pixel of the view is four pixels of the frame
    assert {d.top for d in larger} == {64 + 4 * n for n in range(-4, 5)}
    assert {d.left for d in larger} == {96 + 4 * n for n in range(-4, 5)}
    assert {d.height for d in larger} == {128}


def test_flip_mirrors_the_width_and_solarise_inverts_bright_pixels():
    x = torch.rand(2, 3, 2, 8, 8)
    draws = torch.tensor([_STILL, _STILL])
    draws[0, 10], draws[1, 11] = 1, 1
    out = apply_draws(x, draws)
    assert torch.equal(out[0], x[0].flip(-1))
    assert torch.equal(out[1], torch.where(x[1] >= 0.5, 1 - x[1], x[1]))


def test_colours_match_torchvision_for_each_clip():
    spec, x = AugmentSpec(flip=0.0, jitter_prob=1.0, gray=0.5, blur=0.0), torch.rand(6, 3, 2, 8, 8)
    draws = _draws(spec, 6)
    for clip, draw, out in zip(x, draws.tolist(), apply_draws(x, draws), strict=True):
        for t in range(2):
            frame = clip[:, t]
            ops = (
                tvf.adjust_brightness,
                tvf.adjust_contrast,
                tvf.adjust_saturation,
                tvf.adjust_hue,
            )
            for which in draw[4:8]:
                frame = ops[int(which)](frame, draw[int(which)])
            frame = tvf.rgb_to_grayscale(frame, 3) if draw[8] else frame
            assert torch.allclose(out[:, t], frame, atol=1e-5)


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.3, 0.5])
def test_hue_is_exact_for_grays_and_pure_colours(shift):
    x = torch.tensor(
        [[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5], [0, 0, 0], [1, 1, 0]]
    ).T.view(1, 3, 1, 1, 6)
    draws = torch.tensor([_STILL])
    draws[0, 3] = shift
    expected = tvf.adjust_hue(x[:, :, 0], shift)
    assert torch.allclose(apply_draws(x, draws)[:, :, 0], expected, atol=1e-5)


def test_blur_matches_torchvision():
    x, draws = torch.rand(1, 3, 2, 40, 30), torch.tensor([_STILL])
    draws[0, 9] = 1.3
    expected = tvf.gaussian_blur(x[0].transpose(0, 1), [13, 13], [1.3, 1.3]).transpose(0, 1)
    assert torch.allclose(apply_draws(x, draws)[0], expected, atol=1e-5)


def test_frequencies_match_the_probabilities():
    draws = _draws(AugmentSpec(jitter_prob=0.3, gray=0.2, blur=0.6), 3000)
    assert (draws[:, 0] != 1).float().mean() == pytest.approx(0.3, abs=0.04)
    assert draws[:, 8].mean() == pytest.approx(0.2, abs=0.04)
    assert (draws[:, 9] > 0).float().mean() == pytest.approx(0.6, abs=0.04)
    assert (
        draws[:, 3].abs().max() <= 0.1 and draws[:, :3].min() >= 0.6 and draws[:, :3].max() <= 1.4
    )


@pytest.mark.parametrize("size", [3, 8, 40])
def test_blur_keeps_the_mean_of_a_flat_clip_at_any_size(size):
    flat = torch.full((1, 3, 1, size, size), 0.25)
    draw = torch.tensor([_STILL])
    draw[0, 9] = 2.0
    assert torch.allclose(apply_draws(flat, draw), flat, atol=1e-5)
    noise = torch.rand(1, 3, 1, size, size)
    assert apply_draws(noise, draw).std() < noise.std()


def test_augmentations_fade_in_twenty_stages():
    spec = AugmentSpec(
        scale=(0.1, 1.0),
        jitter=(0.4, 0.4, 0.4, 0.1),
        jitter_prob=0.8,
        gray=0.2,
        blur=0.5,
        solarize=0.1,
    )
    assert faded(spec, 0, 1000) == spec == faded(spec, 49, 1000)
    for epoch, s in ((50, 0.95), (500, 0.5), (999, 0.05)):
        weaker = faded(spec, epoch, 1000)
        assert weaker.scale == pytest.approx((1 - 0.9 * s, 1))
        assert weaker.jitter == pytest.approx((0.4 * s, 0.4 * s, 0.4 * s, 0.1 * s))
        assert (weaker.jitter_prob, weaker.gray) == pytest.approx(
            (0.8 * s, 0.2 * s)
        ) and weaker.flip == spec.flip
    assert faded(spec, 3, 4).gray == pytest.approx(0.2 * 0.25)


def test_motion_shows_only_differences_between_frames():
    still, moving = torch.rand(1, 3, 1, 8, 8).expand(-1, -1, 5, -1, -1), torch.rand(1, 3, 5, 8, 8)
    draw = torch.tensor([[*_STILL[:-1], 1.0]])
    assert torch.equal(apply_draws(still, draw), torch.full((1, 3, 5, 8, 8), 0.5))
    out = apply_draws(moving, draw)
    assert out.shape == moving.shape and out.min() >= 0 and out.max() <= 1
    for t in range(4):
        assert torch.allclose(out[:, :, t], 0.5 + (moving[:, :, t + 1] - moving[:, :, t]) / 2)
    assert torch.equal(out[:, :, 4], out[:, :, 3])
    draws_with_motion = _draws(AugmentSpec(motion=0.25), 2000)
    assert draws_with_motion[:, -1].mean() == pytest.approx(0.25, abs=0.04)
    plain = _draws(AugmentSpec(), 50)
    assert torch.equal(_draws(AugmentSpec(motion=1.0), 1)[0, :-1], plain[0, :-1]), (
        "motion is sampled last"
    )
    assert faded(AugmentSpec(motion=0.5), 10, 20).motion == 0.25


@pytest.mark.parametrize("numbers", [1, 3 * 2 * 16 * 15 * 5])
def test_views_do_not_depend_on_how_many_clips_change_at_a_time(monkeypatch, numbers):
    x = torch.rand(12, 3, 2, 16, 15)
    x[3] = x[3].round()  # gray, pure and black pixels
    draws = _draws(AugmentSpec(solarize=0.3, motion=0.2), 12)
    draws[:3] = draws[:1].clone()
    whole = apply_draws(x, draws)
    monkeypatch.setattr(augment, "_CACHED", numbers)
    assert torch.allclose(apply_draws(x, draws), whole, atol=1e-6)
    assert not torch.allclose(whole, x, atol=0.1)
