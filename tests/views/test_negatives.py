"""Negatives on clips whose pixels say where they come from: channel 0 is the row, 1 the column, 2
the frame.
"""

import numpy as np
import pytest
import torch

from vidrobust.views import NEGATIVES, NegativeSpec, draw_numbers, negatives
from vidrobust.views.negatives import SPATIAL, TEMPORAL, patch_sides


def clips(b=3, t=6, h=28, w=28):
    row, column, frame = (
        torch.arange(h).view(1, h, 1),
        torch.arange(w).view(1, 1, w),
        torch.arange(t).view(t, 1, 1),
    )
    one = torch.stack([n.expand(t, h, w) for n in (row, column, frame)])
    return one.expand(b, 3, t, h, w).float().contiguous()


def numbers(spec, x, seed=0):
    return draw_numbers(
        spec, x.shape[2:], [np.random.default_rng([seed, i]) for i in range(len(x))]
    )


def made(name, x, seed=0, **options):
    spec = NegativeSpec((name,), **options)
    return negatives(x, spec, numbers(spec, x, seed))[:, 0]


def side(seed, i, size=28, patch_px=(16, 72)):
    """What a patch's first number says."""
    low, high = patch_sides(patch_px, size)
    return low + int(np.random.default_rng([seed, i]).random(dtype=np.float32) * (high + 1 - low))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("t", "h", "w"), [(1, 28, 28), (6, 28, 28), (4, 28, 36)])
def test_patches_are_crops_of_the_clip_on_a_grid(seed, t, h, w):
    x = clips(t=t, h=h, w=w)
    got = made("patch", x, seed).long()
    starts = set()
    for i in range(len(x)):
        p = side(seed, i)
        for top in range(0, h, p):
            for left in range(0, w, p):
                cell = got[i, :, :, top : top + p, left : left + p]
                r, c = cell[:2, 0, 0, 0].tolist()
                starts.add((i, r, c))
                assert 0 <= r <= h - p and 0 <= c <= w - p
                for u in range(cell.shape[2]):
                    for v in range(cell.shape[3]):
                        assert (cell[0, :, u, v] == r + u).all() and (
                            cell[1, :, u, v] == c + v
                        ).all()
                        assert cell[2, :, u, v].tolist() == list(range(t))  # motion stays
    assert len(starts) > 10, "drawn for each cell and clip"


def test_turned_patches_are_the_eight_turns_of_their_crops():
    x, seen = clips(t=1), set()
    for seed in range(8):
        got = made("patch", x, seed, turn=True).long()
        for i in range(len(x)):
            p = side(seed, i)
            for top in range(0, 28 - p + 1, p):
                for left in range(0, 28 - p + 1, p):
                    cell = got[i, :2, 0, top : top + p, left : left + p]
                    first = cell.flatten(1).amin(1)
                    want = first[:, None, None] + torch.stack(
                        torch.meshgrid(*2 * [torch.arange(p)], indexing="ij")
                    )
                    turns = [
                        (k, m)
                        for k in range(4)
                        for m in (0, 1)
                        if torch.equal(cell, _turned(want, k, m))
                    ]
                    assert len(turns) == 1
                    seen.add(turns[0])
    assert len(seen) == 8


def _turned(x, k, mirror):
    x = torch.rot90(x, k, (1, 2))
    return x.flip(2) if mirror else x


def test_patches_of_frames_are_drawn_for_each_frame():
    x = clips()
    got = made("patch_frames", x).long()
    assert (got[:, 2] == torch.arange(6).view(1, 6, 1, 1)).all(), "each from its own frame"
    for i in range(len(x)):
        p = side(0, i)
        places = [got[i, :2, t, 0, 0].tolist() for t in range(6)]
        assert len({tuple(place) for place in places}) > 1
        for t, (r, c) in enumerate(places):
            assert torch.equal(got[i, :2, t, :p, :p], x[i, :2, 0, r : r + p, c : c + p].long())


@pytest.mark.parametrize(("t", "length"), [(6, 2), (6, 4), (5, 8), (1, 4)])
def test_tubes_move_in_place_and_time(t, length):
    x = clips(t=t)
    got = made("tube", x, tube=length).long()
    length, shifted = min(length, t), set()
    for i in range(len(x)):
        p = side(0, i)
        for begin in range(0, t, length):
            for top in range(0, 28, p):
                for left in range(0, 28, p):
                    cell = got[i, :, begin : begin + length, top : top + p, left : left + p]
                    r, c, first = cell[:, 0, 0, 0].tolist()
                    assert 0 <= first <= t - length
                    n, u, v = cell.shape[1:]
                    assert torch.equal(
                        cell, x[i, :, first : first + n, r : r + u, c : c + v].long()
                    )
                    shifted.add(first - begin)
    assert (len(shifted) > 1) == (length < t)


@pytest.mark.parametrize("t", [2, 3, 8, 16])
def test_temporal_negatives_keep_frames_and_lose_their_order(t):
    x = clips(t=t, h=8, w=8)
    order = {
        name: made(name, x)[:, 2, :, 0, 0].long()
        for name in ("shuffle", "freeze", "loop", "reverse")
    }
    for name in order:
        got = made(name, x)
        assert torch.equal(got[:, :2], x[:, :2]), "pixels stay in their places"
        assert (got[:, 2] == got[:, 2, :, :1, :1]).all(), "frames stay whole"
    still = torch.arange(t)
    assert all(
        sorted(o.tolist()) == still.tolist() and o.tolist() != still.tolist()
        for o in order["shuffle"]
    )
    assert (order["freeze"] == order["freeze"][:, :1]).all()
    assert torch.equal(order["reverse"], still.flip(0).expand(3, -1))
    length = {2: 1, 3: 2, 8: 2, 16: 4}[t]
    assert torch.equal(order["loop"], order["loop"][:, :1] + still % length)
    assert order["loop"].min() >= 0 and order["loop"].max() < t


def test_frozen_frames_are_any_of_the_clip():
    frames = {int(made("freeze", clips(1, 4, 8, 8), seed)[0, 2, 0, 0, 0]) for seed in range(40)}
    assert frames == {0, 1, 2, 3}


def test_each_cell_has_an_order_of_its_own():
    x = clips(t=8, h=9, w=9)
    got = made("tube_shuffle", x, grid=2).long()
    assert torch.equal(got[:, :2], x[:, :2].long())
    orders = set()
    for i in range(3):
        for rows in (slice(0, 5), slice(5, 9)):
            for columns in (slice(0, 5), slice(5, 9)):
                cell = got[i, 2, :, rows, columns]
                assert (cell == cell[:, :1, :1]).all()
                order = cell[:, 0, 0].tolist()
                assert sorted(order) == list(range(8)) != order
                orders.add(tuple(order))
    assert len(orders) == 12


@pytest.mark.parametrize("name", NEGATIVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_clip_has_its_negative_alone_and_in_a_batch_whatever_the_type(name, dtype):
    x = torch.rand(4, 3, 5, 24, 24).to(dtype)
    before = x.clone()
    spec = NegativeSpec((name,), 2, turn=dtype == torch.bfloat16)
    drawn = numbers(spec, x)
    together = negatives(x, spec, drawn)
    assert together.shape == (4, 2, 3, 5, 24, 24) and together.dtype == dtype
    assert torch.equal(x, before)
    for i in range(4):
        alone = negatives(x[i : i + 1], spec, drawn[i : i + 1])
        assert torch.equal(alone[0], together[i])
    assert set(together[0].flatten().tolist()) <= set(x[0].flatten().tolist()), (
        "pixels of their own clip alone"
    )
    assert name == "reverse" or not torch.equal(together[:, 0], together[:, 1])


def test_patches_come_from_everywhere():
    """p x p crops of a frame of 12 pixels, p = 4: 81 places, each as likely."""
    x, seen = clips(b=1, t=1, h=12, w=12), []
    for seed in range(400):
        got = made("patch", x, seed, patch_px=(75, 75)).long()[0, :2, 0]
        seen += [tuple(got[:, r, c].tolist()) for r in (0, 4, 8) for c in (0, 4, 8)]
    counts = np.bincount([r * 9 + c for r, c in seen], minlength=81)
    assert len(counts) == 81 and ((counts - 3600 / 81) ** 2 / (3600 / 81)).sum() < 130, (
        "chi-square, p > 0.0005"
    )


def test_several_kinds_come_in_their_order():
    x = torch.rand(2, 3, 4, 16, 16)
    spec = NegativeSpec(("freeze", "patch"))
    got = negatives(x, spec, numbers(spec, x))
    assert torch.equal(got[:, 0], made("freeze", x)) and got.shape[1] == 2
    assert negatives(x, NegativeSpec(), torch.empty(2, 0)).shape == (2, 0, 3, 4, 16, 16)


def test_sizes_are_the_published_ones_and_scale():
    assert patch_sides((16, 72), 224) == (16, 72)
    assert patch_sides((16, 72), 112) == (8, 36)
    assert patch_sides((16, 72), 32) == (2, 10)
    sides = [side(s, 0, 224) for s in range(4000)]
    counts = np.bincount(sides, minlength=73)[16:73]
    assert min(sides) == 16 and max(sides) == 72
    assert ((counts - 4000 / 57) ** 2 / (4000 / 57)).sum() < 95, (
        "chi-square of 56 degrees, p > 0.001"
    )


def test_what_fits_no_frame_is_refused():
    with pytest.raises(ValueError, match="patches of 36 pixels are as large as a frame of 32"):
        made("patch", clips(h=32, w=32), patch_px=(16, 250))
    with pytest.raises(
        ValueError, match="as large as a frame of 32"
    ):  # it would be the clip itself
        made("patch", clips(h=32, w=32), patch_px=(16, 224))
    with pytest.raises(ValueError, match="as large as a frame of 1 "):
        patch_sides((16, 72), 1)
    with pytest.raises(ValueError, match="the smallest comes first"):
        patch_sides((72, 16), 224)
    with pytest.raises(ValueError, match="a grid of 9 x 9 tubes"):
        made("tube_shuffle", clips(h=8, w=8), grid=9)


@pytest.mark.parametrize("name", NEGATIVES)
def test_one_frame_has_patches_and_no_order(name):
    assert SPATIAL.keys() | TEMPORAL.keys() == NEGATIVES.keys()
    if name in SPATIAL:
        assert made(name, clips(t=1)).shape == (3, 3, 1, 28, 28)
    else:
        with pytest.raises(ValueError, match=f"{name} changes nothing of a clip of one frame"):
            made(name, clips(t=1))
