import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tvf

from vidrobust.views import AugmentSpec, apply_color, draw_view, take_view


def _draws(spec, n, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor([draw_view(spec, 40, 50, rng).color for _ in range(n)])


def test_one_draw_is_shared_by_all_frames():
    """A still video stays still: every frame of a view is the same picture."""
    rng = np.random.default_rng()
    frames = np.repeat(rng.integers(0, 256, (1, 40, 50, 3), np.uint8), 5, axis=0)
    spec = AugmentSpec(size=24)
    for _ in range(20):
        draw = draw_view(spec, 40, 50, rng)
        clip = take_view(frames, draw, 24)
        assert clip.shape == (3, 5, 24, 24) and clip.dtype == torch.uint8
        out = apply_color(clip[None].float() / 255, torch.tensor([draw.color]))
        assert torch.equal(out[:, :, :1].expand_as(out), out)
        assert out.min() >= 0 and out.max() <= 1


def test_boxes_stay_inside_and_have_the_area_asked_for():
    rng, spec = np.random.default_rng(), AugmentSpec(size=24, scale=(0.2, 0.6))
    for _ in range(300):
        d = draw_view(spec, 40, 50, rng)
        assert d.top >= 0 and d.left >= 0 and d.top + d.height <= 40 and d.left + d.width <= 50
        assert 0.15 < d.height * d.width / 2000 < 0.65
        assert 0.6 < d.width / d.height < 1.65


def test_a_box_that_never_fits_falls_back_to_the_centre():
    d = draw_view(AugmentSpec(scale=(1, 1)), 10, 200, np.random.default_rng(0))
    assert (d.height, d.width) == (10, 13) and d.left == 93


def test_the_centre_view_draws_nothing():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    draw = draw_view(AugmentSpec(size=24, center=True), 40, 50, rng)
    assert (draw.top, draw.left, draw.height, draw.width, draw.flip) == (8, 13, 24, 24, False)
    assert rng.bit_generator.state == before
    frames = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(1, 40, 50, 3)
    clip = take_view(frames, draw, 24)
    assert np.array_equal(clip[:, 0].permute(1, 2, 0).numpy(), frames[0, 8:32, 13:37])
    x = clip[None].float() / 255
    assert apply_color(x, torch.tensor([draw.color])) is x


def test_flip_mirrors_the_width():
    frames = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
    spec = AugmentSpec(size=24, scale=(1, 1), ratio=(1, 1), flip=1.0)
    clip = take_view(frames, draw_view(spec, 24, 24, np.random.default_rng(0)), 24)
    assert np.array_equal(clip.permute(1, 2, 3, 0).numpy(), frames[:, :, ::-1])


def test_colours_are_torchvisions_one_clip_at_a_time():
    spec, x = AugmentSpec(jitter_prob=1.0, gray=0.5, blur=0.0), torch.rand(6, 3, 2, 8, 8)
    draws = _draws(spec, 6)
    for clip, draw, out in zip(x, draws.tolist(), apply_color(x, draws), strict=True):
        for t in range(2):
            frame = clip[:, t]
            ops = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue)
            for which in draw[4:8]:
                frame = ops[int(which)](frame, draw[int(which)])
            frame = tvf.rgb_to_grayscale(frame, 3) if draw[8] else frame
            assert torch.allclose(out[:, t], frame, atol=1e-6)


def test_probabilities_are_those_asked_for():
    draws = _draws(AugmentSpec(jitter_prob=0.3, gray=0.2, blur=0.6), 3000)
    assert (draws[:, 0] != 1).float().mean() == pytest.approx(0.3, abs=0.04)
    assert draws[:, 8].mean() == pytest.approx(0.2, abs=0.04)
    assert (draws[:, 9] > 0).float().mean() == pytest.approx(0.6, abs=0.04)
    assert draws[:, 3].abs().max() <= 0.1 and draws[:, :3].min() >= 0.6 and draws[:, :3].max() <= 1.4


@pytest.mark.parametrize("size", [3, 8, 40])
def test_blur_keeps_the_mean_of_a_flat_clip_at_any_size(size):
    flat = torch.full((1, 3, 1, size, size), 0.25)
    draw = torch.tensor([[1.0, 1, 1, 0, 0, 1, 2, 3, 0, 2.0]])
    assert torch.allclose(apply_color(flat, draw), flat, atol=1e-5)
    noise = torch.rand(1, 3, 1, size, size)
    assert apply_color(noise, draw).std() < noise.std()
