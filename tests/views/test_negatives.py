"""Test negatives on clips whose pixels encode their origin.

Channel 0 is the row, channel 1 the column, channel 2 the frame.
"""

from itertools import product

import numpy as np
import pytest
import torch

from vidrobust.views import NEGATIVES, NegativeSpec, draw_numbers, negatives
from vidrobust.views.negatives import SPATIAL, TEMPORAL, Numbers, count_numbers, patch_sides

SIZES = [(1, 28, 28), (2, 16, 24), (7, 33, 20), (16, 112, 112)]


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


def negative_of(name, x, seed=0, **options):
    spec = NegativeSpec((name,), **options)
    return negatives(x, spec, numbers(spec, x, seed))[:, 0]


def side(seed, i, size=28, patch_px=(16, 72)):
    """Return the side of a clip's patches, which its first random number decides."""
    low, high = patch_sides(patch_px, size)
    return low + int(np.random.default_rng([seed, i]).random(dtype=np.float32) * (high + 1 - low))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("t", "h", "w"), [(1, 28, 28), (6, 28, 28), (4, 28, 36)])
def test_patches_are_crops_of_the_clip_on_a_grid(seed, t, h, w):
    x = clips(t=t, h=h, w=w)
    output = negative_of("patch", x, seed).long()
    starts = set()
    for i in range(len(x)):
        p = side(seed, i)
        for top in range(0, h, p):
            for left in range(0, w, p):
                cell = output[i, :, :, top : top + p, left : left + p]
                r, c = cell[:2, 0, 0, 0].tolist()
                starts.add((i, r, c))
                assert 0 <= r <= h - p and 0 <= c <= w - p
                for u in range(cell.shape[2]):
                    for v in range(cell.shape[3]):
                        assert (cell[0, :, u, v] == r + u).all() and (
                            cell[1, :, u, v] == c + v
                        ).all()
                        assert cell[2, :, u, v].tolist() == list(range(t))  # motion continues
    assert len(starts) > 10, "each cell of each clip has its own crop"


def test_turned_patches_show_all_eight_flips_and_rotations():
    x, observed = clips(t=1), set()
    for seed in range(8):
        output = negative_of("patch", x, seed, turn=True).long()
        for i in range(len(x)):
            p = side(seed, i)
            for top in range(0, 28 - p + 1, p):
                for left in range(0, 28 - p + 1, p):
                    cell = output[i, :2, 0, top : top + p, left : left + p]
                    first = cell.flatten(1).amin(1)
                    expected = first[:, None, None] + torch.stack(
                        torch.meshgrid(*2 * [torch.arange(p)], indexing="ij")
                    )
                    turns = [
                        (k, m)
                        for k in range(4)
                        for m in (0, 1)
                        if torch.equal(cell, _turned(expected, k, m))
                    ]
                    assert len(turns) == 1
                    observed.add(turns[0])
    assert len(observed) == 8


def _turned(x, k, mirror):
    x = torch.rot90(x, k, (1, 2))
    return x.flip(2) if mirror else x


def test_patch_frames_samples_new_crops_for_each_frame():
    x = clips()
    output = negative_of("patch_frames", x).long()
    assert (output[:, 2] == torch.arange(6).view(1, 6, 1, 1)).all(), (
        "crops come from their own frame"
    )
    for i in range(len(x)):
        p = side(0, i)
        places = [output[i, :2, t, 0, 0].tolist() for t in range(6)]
        assert len({tuple(place) for place in places}) > 1
        for t, (r, c) in enumerate(places):
            assert torch.equal(output[i, :2, t, :p, :p], x[i, :2, 0, r : r + p, c : c + p].long())


@pytest.mark.parametrize(("t", "length"), [(6, 2), (6, 4), (5, 8), (1, 4)])
def test_tubes_come_from_other_places_and_times(t, length):
    x = clips(t=t)
    output = negative_of("tube", x, tube=length).long()
    length, shifted = min(length, t), set()
    for i in range(len(x)):
        p = side(0, i)
        for begin in range(0, t, length):
            for top in range(0, 28, p):
                for left in range(0, 28, p):
                    cell = output[i, :, begin : begin + length, top : top + p, left : left + p]
                    r, c, first = cell[:, 0, 0, 0].tolist()
                    assert 0 <= first <= t - length
                    n, u, v = cell.shape[1:]
                    assert torch.equal(
                        cell, x[i, :, first : first + n, r : r + u, c : c + v].long()
                    )
                    shifted.add(first - begin)
    assert (len(shifted) > 1) == (length < t)


@pytest.mark.parametrize("t", [2, 3, 8, 16])
def test_temporal_negatives_keep_frames_and_change_their_order(t):
    x = clips(t=t, h=8, w=8)
    order = {
        name: negative_of(name, x)[:, 2, :, 0, 0].long()
        for name in ("shuffle", "freeze", "loop", "reverse")
    }
    for name in order:
        output = negative_of(name, x)
        assert torch.equal(output[:, :2], x[:, :2]), "pixels keep their places"
        assert (output[:, 2] == output[:, 2, :, :1, :1]).all(), "frames stay whole"
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


def test_freeze_shows_any_frame_of_the_clip():
    frames = {
        int(negative_of("freeze", clips(1, 4, 8, 8), seed)[0, 2, 0, 0, 0]) for seed in range(40)
    }
    assert frames == {0, 1, 2, 3}


def test_tube_shuffle_gives_each_cell_its_own_order():
    x = clips(t=8, h=9, w=9)
    output = negative_of("tube_shuffle", x, grid=2).long()
    assert torch.equal(output[:, :2], x[:, :2].long())
    orders = set()
    for i in range(3):
        for rows in (slice(0, 5), slice(5, 9)):
            for columns in (slice(0, 5), slice(5, 9)):
                cell = output[i, 2, :, rows, columns]
                assert (cell == cell[:, :1, :1]).all()
                order = cell[:, 0, 0].tolist()
                assert sorted(order) == list(range(8)) != order
                orders.add(tuple(order))
    assert len(orders) == 12


@pytest.mark.parametrize("name", NEGATIVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_negatives_of_a_clip_are_the_same_alone_and_in_a_batch(name, dtype):
    x = torch.rand(4, 3, 5, 24, 24).to(dtype)
    before = x.clone()
    spec = NegativeSpec((name,), 2, turn=dtype == torch.bfloat16)
    numbers_of_clips = numbers(spec, x)
    together = negatives(x, spec, numbers_of_clips)
    assert together.shape == (4, 2, 3, 5, 24, 24) and together.dtype == dtype
    assert torch.equal(x, before)
    for i in range(4):
        alone = negatives(x[i : i + 1], spec, numbers_of_clips[i : i + 1])
        assert torch.equal(alone[0], together[i])
    assert set(together[0].flatten().tolist()) <= set(x[0].flatten().tolist()), (
        "all pixels come from the same clip"
    )
    assert name == "reverse" or not torch.equal(together[:, 0], together[:, 1])


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, size) for name, size in product(NEGATIVES, SIZES) if size[0] > 1 or name in SPATIAL],
    ids=str,
)
@pytest.mark.parametrize(
    "options", [{}, {"turn": True, "tube": 3, "grid": 2}, {"patch_px": (40, 60), "tube": 100}]
)
def test_each_kind_takes_as_many_random_numbers_as_it_declares(name, size, options):
    spec = NegativeSpec((name,), **options)
    declared = NEGATIVES[name].count_numbers(spec, *size)
    served = Numbers(torch.rand(2, declared + 10))
    NEGATIVES[name].make(torch.rand(2, 3, *size), served, spec)
    assert served.taken == declared
    both = NegativeSpec((name, "patch"), 3, **options)
    assert count_numbers(both, *size) == 3 * (
        declared + NEGATIVES["patch"].count_numbers(both, *size)
    )


def test_patches_come_uniformly_from_the_whole_frame():
    """4 x 4 crops of a frame of 12 pixels have 81 equally likely places."""
    x, observed = clips(b=1, t=1, h=12, w=12), []
    for seed in range(400):
        output = negative_of("patch", x, seed, patch_px=(75, 75)).long()[0, :2, 0]
        observed += [tuple(output[:, r, c].tolist()) for r in (0, 4, 8) for c in (0, 4, 8)]
    counts = np.bincount([r * 9 + c for r, c in observed], minlength=81)
    assert len(counts) == 81 and ((counts - 3600 / 81) ** 2 / (3600 / 81)).sum() < 130, (
        "chi-square, p > 0.0005"
    )


def test_several_kinds_come_in_the_order_of_their_names():
    x = torch.rand(2, 3, 4, 16, 16)
    spec = NegativeSpec(("freeze", "patch"))
    output = negatives(x, spec, numbers(spec, x))
    assert torch.equal(output[:, 0], negative_of("freeze", x)) and output.shape[1] == 2
    assert negatives(x, NegativeSpec(), torch.empty(2, 0)).shape == (2, 0, 3, 4, 16, 16)


def test_patch_sides_are_the_published_ones_and_scale_with_the_frame():
    assert patch_sides((16, 72), 224) == (16, 72)
    assert patch_sides((16, 72), 112) == (8, 36)
    assert patch_sides((16, 72), 32) == (2, 10)
    sides = [side(s, 0, 224) for s in range(4000)]
    counts = np.bincount(sides, minlength=73)[16:73]
    assert min(sides) == 16 and max(sides) == 72
    assert ((counts - 4000 / 57) ** 2 / (4000 / 57)).sum() < 95, (
        "chi-square of 56 degrees, p > 0.001"
    )


def test_patches_and_grids_that_do_not_fit_the_frame_are_refused():
    with pytest.raises(ValueError, match="patches of 36 pixels are as large as a frame of 32"):
        negative_of("patch", clips(h=32, w=32), patch_px=(16, 250))
    with pytest.raises(
        ValueError, match="as large as a frame of 32"
    ):  # the negative would be the clip itself
        negative_of("patch", clips(h=32, w=32), patch_px=(16, 224))
    with pytest.raises(ValueError, match="as large as a frame of 1;"):
        patch_sides((16, 72), 1)
    with pytest.raises(ValueError, match="the smallest side must come first"):
        patch_sides((72, 16), 224)
    with pytest.raises(ValueError, match="grid=9: must be at most the side of a frame, 8 pixels"):
        negative_of("tube_shuffle", clips(h=8, w=8), grid=9)


@pytest.mark.parametrize("name", NEGATIVES)
def test_one_frame_has_spatial_negatives_only(name):
    assert SPATIAL.keys() | TEMPORAL.keys() == NEGATIVES.keys()
    if name in SPATIAL:
        assert negative_of(name, clips(t=1)).shape == (3, 3, 1, 28, 28)
    else:
        with pytest.raises(ValueError, match=f"{name} changes nothing in a clip of one frame"):
            negative_of(name, clips(t=1))
