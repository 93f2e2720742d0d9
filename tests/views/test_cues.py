"""Test cues on a square that moves over a picture."""

import torch

from vidrobust.views.cues import background, differences, moving, swapped, swapped_frozen


def clip(seed=0, frames=8, side=32, square=8):
    """Return a clip (1, 3, T, H, W), the mask of its white square, and the picture behind it.

    The square moves by three pixels per frame.
    """
    torch.manual_seed(seed)
    picture = torch.rand(1, 3, 1, side, side) * 0.5
    x, where = picture.expand(-1, -1, frames, -1, -1).clone(), torch.zeros(1, 1, frames, side, side)
    for t in range(frames):
        x[:, :, t, 8 : 8 + square, 3 * t : 3 * t + square] = 1
        where[:, :, t, 8 : 8 + square, 3 * t : 3 * t + square] = 1
    return x, where, picture


def test_background_is_the_static_picture():
    x, _, picture = clip()
    assert torch.equal(background(x), picture.expand_as(x))


def test_moving_mask_covers_the_square_with_a_margin():
    x, where, _ = clip()
    output = moving(x)
    assert output.shape == where.shape and output.min() >= 0 and output.max() <= 1
    assert (output[where > 0] > 0.5).float().mean() > 0.98
    wide = torch.nn.functional.max_pool2d(where[0, 0], 7, 1, 3)[None, None]
    assert output[wide == 0].max() == 0, "nothing else is in the mask"
    assert moving(background(x)).max() == 0


def test_swapped_moves_the_square_before_another_picture():
    (x, where, _), (y, _, other) = clip(0), clip(1)
    composed = swapped(x, y)
    inner, wide = where > 0, torch.nn.functional.max_pool2d(where[0, 0], 7, 1, 3)[None, None] > 0
    assert (composed - x).abs()[inner.expand_as(x)].mean() < 0.02
    assert torch.equal(composed[~wide.expand_as(x)], other.expand_as(x)[~wide.expand_as(x)])
    frozen = swapped_frozen(x, y)
    assert (frozen == frozen[:, :, :1]).all() and any(
        torch.equal(frozen[:, :, 0], composed[:, :, t]) for t in range(8)
    )


def test_clips_of_a_batch_are_composed_independently():
    (a, *_), (b, *_), (c, *_) = clip(0), clip(1), clip(2)
    both = swapped_frozen(torch.cat([a, b]), torch.cat([c, a]))
    assert torch.equal(both[:1], swapped_frozen(a, c)) and torch.equal(
        both[1:], swapped_frozen(b, a)
    )


def test_differences_show_only_what_moves():
    x, where, _ = clip()
    output = differences(x)
    still = (where + where.roll(-1, 2))[:, :, :-1] == 0
    assert (output[:, :, :-1][still.expand(-1, 3, -1, -1, -1)] == 0.5).all() and (
        output != 0.5
    ).any()
