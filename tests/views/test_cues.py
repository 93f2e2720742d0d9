"""A square moves over a picture: what is found of each, and put together anew."""

import torch

from vidrobust.views.cues import background, differences, moving, swapped, swapped_frozen


def clip(seed=0, frames=8, side=32, square=8):
    """(1, 3, T, H, W) and where the white square is in each frame: it moves by three pixels."""
    torch.manual_seed(seed)
    picture = torch.rand(1, 3, 1, side, side) * 0.5
    x, where = picture.expand(-1, -1, frames, -1, -1).clone(), torch.zeros(1, 1, frames, side, side)
    for t in range(frames):
        x[:, :, t, 8 : 8 + square, 3 * t : 3 * t + square] = 1
        where[:, :, t, 8 : 8 + square, 3 * t : 3 * t + square] = 1
    return x, where, picture


def test_the_background_is_what_stays():
    x, _, picture = clip()
    assert torch.equal(background(x), picture.expand_as(x))


def test_what_moves_is_found_with_a_margin():
    x, where, _ = clip()
    found = moving(x)
    assert found.shape == where.shape and found.min() >= 0 and found.max() <= 1
    assert (found[where > 0] > 0.5).float().mean() > 0.98
    wide = torch.nn.functional.max_pool2d(where[0, 0], 7, 1, 3)[None, None]
    assert found[wide == 0].max() == 0, "nothing else"
    assert moving(background(x)).max() == 0


def test_the_square_moves_on_before_another_picture():
    (x, where, _), (y, _, other) = clip(0), clip(1)
    made = swapped(x, y)
    inner, wide = where > 0, torch.nn.functional.max_pool2d(where[0, 0], 7, 1, 3)[None, None] > 0
    assert (made - x).abs()[inner.expand_as(x)].mean() < 0.02
    assert torch.equal(made[~wide.expand_as(x)], other.expand_as(x)[~wide.expand_as(x)])
    frozen = swapped_frozen(x, y)
    assert (frozen == frozen[:, :, :1]).all() and any(
        torch.equal(frozen[:, :, 0], made[:, :, t]) for t in range(8)
    )


def test_each_clip_of_a_batch_is_composed_alone():
    (a, *_), (b, *_), (c, *_) = clip(0), clip(1), clip(2)
    both = swapped_frozen(torch.cat([a, b]), torch.cat([c, a]))
    assert torch.equal(both[:1], swapped_frozen(a, c)) and torch.equal(
        both[1:], swapped_frozen(b, a)
    )


def test_differences_show_nothing_that_stays():
    x, where, _ = clip()
    found = differences(x)
    still = (where + where.roll(-1, 2))[:, :, :-1] == 0
    assert (found[:, :, :-1][still.expand(-1, 3, -1, -1, -1)] == 0.5).all() and (found != 0.5).any()
