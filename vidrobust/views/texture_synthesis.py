"""Example-based texture synthesis for images and clips.

Pixels are copied from examples, coarse to fine. At the coarsest level each takes, of all pixels of
the examples, one whose surroundings fit, while all of these are taken as often, so that what the
examples show stays as it was distributed; at finer ones, of those that continue what its neighbours
show (Ashikhmin 2001). A quarter of the pixels is done at a time, so that they can be done at once
(Lefebvre and Hoppe 2005).
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_REACH = 2  # pixels to each side of a neighbourhood
_DIMS = 16  # principal components of neighbourhoods that are compared
_ROUNDS = 2  # passes over a level, but for the finest, which has one
_COARSE_PX = 14  # side of the examples at the coarsest level, at least
_GUIDE = (
    1.0  # what a pixel costs whose lightness is a standard deviation off a guide's, in the same
)
_SOFT, _PRICINGS = (
    0.2,
    10,
)  # of `_fairly`: its softness in variances of surroundings, and how often it prices
_COMPARED = 4  # frames of a clip


def synthesize(
    examples: Sequence[np.ndarray],
    size: int,
    rng: np.random.Generator,
    guide: np.ndarray | None = None,
) -> np.ndarray:
    """A texture like the examples, (T, h, w, 3) uint8 each, all of one T -> (size, size) int64.

    Which pixel of the examples, their h w behind each other, each pixel shows: `show` makes frames
    of it, in which what moves in an example goes on moving. T = 1 is an image. guide (size, size):
    a picture's lightness, which the texture follows, dark where that is dark: the shape of one
    thing in the texture of another (texture transfer, Efros and Freeman 2001). The same generator
    gives the same texture, on one machine with as many threads. Raises ValueError where there is no
    example, or one of less than 5 pixels a side.
    """
    if not examples or min(min(example.shape[1:3]) for example in examples) <= 2 * _REACH:
        raise ValueError(f"a texture is made of examples of more than {2 * _REACH} pixels a side")
    seen = np.unique(np.linspace(0, len(examples[0]) - 1, _COMPARED).round().astype(int))
    channels = [
        torch.from_numpy(e[seen].astype(np.float32) / 255).permute(0, 3, 1, 2).flatten(0, 1)
        for e in examples
    ]
    return _places(
        channels, size, rng, None if guide is None else torch.from_numpy(guide.astype(np.float32))
    ).numpy()


def show(examples: Sequence[np.ndarray], places: np.ndarray) -> Iterator[np.ndarray]:
    """The frames (size, size, 3) of a texture, one by one."""
    for frames in zip(*examples, strict=True):
        yield np.concatenate([frame.reshape(-1, 3) for frame in frames])[places]


def patches_of(frames: np.ndarray, side: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Paper C's two examples of a clip (T, H, W, 3): the central patch of `side` pixels, and one
    drawn anywhere.

    Raises ValueError for frames that are smaller than the patch.
    """
    height, width = frames.shape[1:3]
    if side > min(height, width):
        raise ValueError(f"frames of {width}x{height} pixels have no patch of {side}")
    rows, columns = height - side, width - side
    corners = [
        (rows // 2, columns // 2),
        (int(rng.integers(rows + 1)), int(rng.integers(columns + 1))),
    ]
    return [frames[:, top : top + side, left : left + side] for top, left in corners]


def patch_side(side: int, short_side: int) -> int:
    """A patch of `side` pixels of a picture of 224 or more; in proportion of a smaller one, 9 at
    least.
    """
    return max(4 * _REACH + 1, min(side, short_side, round(side * short_side / 224)))


@torch.no_grad()
def _places(
    examples: list[Tensor], size: int, rng: np.random.Generator, guide: Tensor | None
) -> Tensor:
    """Examples (C, h, w) in [0, 1] -> which of all their pixels, behind each other, each pixel
    shows: (size, size).
    """
    smallest = min(min(e.shape[1:]) for e in examples)
    levels = max(0, int(math.log2(smallest / _COARSE_PX)))
    pyramid = [examples]
    for _ in range(levels):
        pyramid.append([_half(e) for e in pyramid[-1]])
    side = -(-size // 2**levels)
    guides = [_as_light(guide, examples, side * 2**levels)]
    for _ in range(levels):
        guides.append(None if guides[-1] is None else F.avg_pool2d(guides[-1][None], 2)[0])
    table = _Examples(pyramid[levels], guides[levels])
    places = table.whole[torch.from_numpy(rng.integers(len(table.whole), size=(side, side)))]
    for _ in range(_ROUNDS):
        places = table.searched(places)
    places = table.continued(
        places
    )  # as a search that dislikes what is shown often leaves dots in plain areas
    for level in range(levels - 1, -1, -1):
        finer = _Examples(pyramid[level], guides[level])
        places = finer.children(places, table)
        for _ in range(_ROUNDS if level else 1):
            places = finer.continued(places)
        table = finer
    return places[:size, :size]


_Best = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _as_light(guide: Tensor | None, examples: list[Tensor], side: int) -> Tensor | None:
    """A guide (h, w) in the lightnesses of the examples, rank for rank (ties share one), filled up
    to `side` pixels.
    """
    if guide is None:
        return None
    light = torch.cat([e.mean(0).flatten() for e in examples]).sort().values
    _, which, counts = guide.unique(return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0) - (counts + 1) / 2) / max(1, guide.numel() - 1)  # from 0 to 1
    matched = light[(rank * (len(light) - 1)).round().long()][which]
    more = [side - n for n in matched.shape]
    return F.pad(matched[None], (0, more[1], 0, more[0]), mode="replicate")[0]


class _Examples:
    """The n pixels of the examples at one level, behind each other, what surrounds each, and the
    guide there.
    """

    def __init__(self, examples: list[Tensor], guide: Tensor | None) -> None:
        sizes = [(e.shape[1], e.shape[2]) for e in examples]
        starts = np.cumsum([0, *(h * w for h, w in sizes)]).tolist()

        def each(values: list[Tensor]) -> Tensor:
            return torch.cat(
                [value.expand(size).flatten() for value, size in zip(values, sizes, strict=True)]
            )

        self.guide = guide
        self.colors = torch.cat([e.flatten(1) for e in examples], 1)  # (C, n)
        self.number = each([torch.tensor(k) for k in range(len(sizes))])
        self.row = each([torch.arange(h)[:, None] for h, _ in sizes])
        self.column = each([torch.arange(w) for _, w in sizes])
        self.first, self.size = torch.tensor(starts[:-1]), torch.tensor(sizes)  # of each example
        height, width = self.size[self.number].unbind(1)
        inside = (self.row >= _REACH) & (self.row < height - _REACH)
        inside &= (self.column >= _REACH) & (self.column < width - _REACH)
        self.whole = inside.nonzero().flatten()  # the pixels that have whole surroundings
        self.kernel = self._principal(
            torch.cat([F.unfold(e[None], 2 * _REACH + 1)[0] for e in examples], 1)
        )
        self.surroundings = torch.zeros(len(self.row), len(self.kernel))
        self.surroundings[self.whole] = torch.cat(
            [F.conv2d(e[None], self.kernel)[0].flatten(1) for e in examples], 1
        ).T
        self.light, self.spread = self.colors.mean(0), self.surroundings[self.whole].var(0).sum()

    @staticmethod
    def _principal(patches: Tensor) -> Tensor:
        """Neighbourhoods (C * 25, m) -> the first principal components, as a convolution's kernel
        (D, C, 5, 5).
        """
        centred = patches - patches.mean(1, keepdim=True)
        vectors = torch.linalg.eigh((centred @ centred.T).double()).eigenvectors
        best = vectors.flip(1)[:, :_DIMS].T.float()
        return best.reshape(len(best), -1, 2 * _REACH + 1, 2 * _REACH + 1)

    def searched(self, places: Tensor) -> Tensor:
        """Each pixel takes one that fits of all that have whole surroundings, and each of these is
        taken as often.
        """
        known = self.surroundings[self.whole]
        norms, softness = known.square().sum(1), _SOFT * self.spread.clamp(min=1e-9)

        def best(places: Tensor, rows: Tensor, columns: Tensor, wanted: Tensor) -> Tensor:
            cost = (
                norms
                - 2 * wanted @ known.T
                + self._astray(self.light[self.whole], rows, columns, -1)
            )
            return self.whole[_fairly(cost.flatten(0, 1) / softness)].view(wanted.shape[:2])

        return self._by_quarters(places, best)

    def continued(self, places: Tensor) -> Tensor:
        """Each pixel takes the best of the nine that continue what it and its neighbours show."""

        def best(places: Tensor, rows: Tensor, columns: Tensor, wanted: Tensor) -> Tensor:
            height, width = places.shape
            candidates = torch.stack(
                [
                    self.moved(
                        places[((rows + down) % height)[:, None], (columns + right) % width],
                        -down,
                        -right,
                    )
                    for down in (-1, 0, 1)
                    for right in (-1, 0, 1)
                ]
            )
            distance = (self.surroundings[candidates] - wanted).square().sum(-1)
            distance += self._astray(self.light[candidates], rows, columns, 0)
            return candidates.gather(0, distance.argmin(0, keepdim=True))[0]

        return self._by_quarters(places, best)

    def _astray(
        self, light: Tensor, rows: Tensor, columns: Tensor, candidates: int
    ) -> Tensor | float:
        """What lightnesses cost that are not the guide's there. candidates: their dimension, 0, or
        -1 for (m,).
        """
        if self.guide is None:
            return 0.0
        there = self.guide[rows[:, None], columns]
        off = light - (there[..., None] if candidates else there)
        return _GUIDE * self.spread / self.light.var().clamp(min=1e-6) * off.square()

    def children(self, places: Tensor, coarser: "_Examples") -> Tensor:
        """Places of the next coarser level -> of this one, four for each."""
        large = places.repeat_interleave(2, 0).repeat_interleave(2, 1)
        down, right = (torch.arange(n) % 2 for n in large.shape)
        row, column = 2 * coarser.row[large] + down[:, None], 2 * coarser.column[large] + right
        return self._at(coarser.number[large], row, column)

    def moved(self, places: Tensor, down: int, right: int) -> Tensor:
        return self._at(self.number[places], self.row[places] + down, self.column[places] + right)

    def _at(self, number: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """The pixels there, or the nearest that have whole surroundings."""
        height, width = self.size[number].unbind(-1)
        row = row.clamp(min=_REACH).minimum(height - 1 - _REACH)
        column = column.clamp(min=_REACH).minimum(width - 1 - _REACH)
        return self.first[number] + row * width + column

    def _by_quarters(self, places: Tensor, best: _Best) -> Tensor:
        """best(places, rows, columns, surroundings (h, w, D)) -> new places (h, w) there. Edges
        meet opposite ones.
        """
        places = places.clone()
        for quarter in range(4):
            rows, columns = (
                torch.arange(s, n, 2) for s, n in zip(divmod(quarter, 2), places.shape, strict=True)
            )
            shown = F.pad(self.colors[:, places][None], (_REACH,) * 4, mode="circular")
            wanted = F.conv2d(shown, self.kernel)[0].permute(1, 2, 0)[rows[:, None], columns]
            places[rows[:, None], columns] = best(places, rows, columns, wanted)
        return places


def _fairly(costs: Tensor) -> Tensor:
    """(N, m) -> which of the m each of the N takes: the cheapest at prices that spread them evenly
    (Sinkhorn 1967).

    At no price plain places win: before anything is settled their surroundings fit everywhere a
    little.
    """
    costs = costs - costs.min(1, keepdim=True).values
    price = costs.new_zeros(costs.shape[1])
    for _ in range(_PRICINGS):
        gain = -torch.logsumexp(-costs - price, 1, keepdim=True)
        price = torch.logsumexp(gain - costs, 0)
    return (costs + price).argmin(1)


def _half(x: Tensor) -> Tensor:
    """(C, h, w) -> (C, h / 2, w / 2), blurred; rounded up."""
    kernel = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    h, w = x.shape[1:]
    x = F.pad(x[:, None], (1, 1 + w % 2, 1, 1 + h % 2), mode="replicate")
    return F.conv2d(
        F.conv2d(x, kernel.view(1, 1, 4, 1), stride=(2, 1)), kernel.view(1, 1, 1, 4), stride=(1, 2)
    )[:, 0]
