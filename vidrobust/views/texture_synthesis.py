"""Example-based texture synthesis for images and clips.

Pixels are copied from examples, from coarse to fine. At the coarsest level, each pixel takes an
example pixel whose neighbourhood fits. All example pixels are used equally often at that level, so
that the texture keeps the distribution of the examples. At finer levels, each pixel takes one of
the pixels that continue what its neighbours show (Ashikhmin 2001). A quarter of the pixels is
updated at a time, so that they can be updated in parallel (Lefebvre and Hoppe 2005).
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_REACH = 2  # pixels to each side of a neighbourhood
_DIMS = 16  # principal components of neighbourhoods that are compared
_ROUNDS = 2  # passes over a level; the finest level has one
_COARSE_PX = 14  # least side of the examples at the coarsest level, pixels
# cost of a pixel whose lightness differs from the guide by one standard deviation, as a multiple of
# the variance of neighbourhoods
_GUIDE = 1.0
_SOFT = 0.2  # softness of `_fairly`, in variances of neighbourhoods
_PRICINGS = 10  # iterations of the prices in `_fairly`
_COMPARED = 4  # frames of a clip that are compared
_AROUND = tuple((i // 3 - 1, i % 3 - 1) for i in range(9))  # (down, right) of a pixel's 3 x 3


def synthesize(
    examples: Sequence[np.ndarray],
    size: int,
    rng: np.random.Generator,
    guide: np.ndarray | None = None,
) -> np.ndarray:
    """Return a texture that looks like the examples, as a map of example pixels.

    `show` turns the map into frames. Motion in an example then continues in the texture. The same
    generator gives the same texture, on one machine with the same number of threads.

    Args:
        examples: (T, h, w, 3) uint8 each, all of one T; T = 1 is an image.
        size: side of the texture, pixels.
        rng: samples the first texture, which the passes then improve.
        guide: lightness (size, size) of a picture, or None. The texture is dark where the guide is
            dark: the shape of one thing in the texture of another (texture transfer, Efros and
            Freeman 2001).

    Returns:
        (size, size) int64: the pixel that each pixel shows, among the h w pixels of all examples in
        a row.

    Raises:
        ValueError: no example, or one of less than 5 pixels per side.
    """
    if not examples or min(min(example.shape[1:3]) for example in examples) <= 2 * _REACH:
        raise ValueError(
            f"examples: a texture needs at least one, of more than {2 * _REACH} pixels a side"
        )
    frames = np.linspace(0, len(examples[0]) - 1, _COMPARED).round().astype(int)
    compared = np.unique(frames)
    channels = [
        torch.from_numpy(e[compared].astype(np.float32) / 255).permute(0, 3, 1, 2).flatten(0, 1)
        for e in examples
    ]
    lightness = None if guide is None else torch.from_numpy(guide.astype(np.float32))
    return _places(channels, size, rng, lightness).numpy()


def show(examples: Sequence[np.ndarray], places: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the frames (size, size, 3) of a texture; places: from `synthesize`."""
    for frames in zip(*examples, strict=True):
        yield np.concatenate([frame.reshape(-1, 3) for frame in frames])[places]


def patches_of(frames: np.ndarray, side: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the two examples of a clip in Ge et al. 2021: the central patch, and a random one.

    Args:
        frames: (T, H, W, 3).
        side: of the patches, pixels.
        rng: samples the place of the second patch.

    Returns:
        Two arrays (T, side, side, 3).

    Raises:
        ValueError: the frames are smaller than the patch.
    """
    height, width = frames.shape[1:3]
    if side > min(height, width):
        raise ValueError(
            f"side={side}: patches must be at most as large as the frames, {width}x{height} pixels"
        )
    rows = height - side
    columns = width - side
    corners = [
        (rows // 2, columns // 2),
        (int(rng.integers(rows + 1)), int(rng.integers(columns + 1))),
    ]
    return [frames[:, top : top + side, left : left + side] for top, left in corners]


def patch_side(side: int, short_side: int) -> int:
    """Return the side of a patch in pictures of a short side, both in pixels.

    `side` is meant for pictures of 224 pixels or more. It is scaled down for smaller ones, to at
    least 9 pixels.
    """
    return max(4 * _REACH + 1, min(side, short_side, round(side * short_side / 224)))


@torch.no_grad()
def _places(
    examples: list[Tensor], size: int, rng: np.random.Generator, guide: Tensor | None
) -> Tensor:
    """Synthesise a texture from coarse to fine.

    Args:
        examples: (C, h, w) in [0, 1] each.
        size: side of the texture, pixels.
        rng: samples the first texture.
        guide: (size, size), or None.

    Returns:
        (size, size): the pixel of the examples that each pixel shows.
    """
    # Pyramids of the examples and of the guide, from fine to coarse.
    smallest = min(min(e.shape[1:]) for e in examples)
    levels = max(0, int(math.log2(smallest / _COARSE_PX)))
    pyramid = [examples]
    for _ in range(levels):
        pyramid.append([_half(e) for e in pyramid[-1]])
    side = -(-size // 2**levels)
    guides = [_as_light(guide, examples, side * 2**levels)]
    for _ in range(levels):
        guides.append(None if guides[-1] is None else F.avg_pool2d(guides[-1][None], 2)[0])

    # Coarsest level: start from random pixels, and search all pixels of the examples.
    table = _Examples(pyramid[levels], guides[levels])
    places = table.whole[torch.from_numpy(rng.integers(len(table.whole), size=(side, side)))]
    for _ in range(_ROUNDS):
        places = table.searched(places)
    # The search avoids pixels that are shown often, which leaves dots in plain areas. Remove them.
    places = table.continued(places)

    # Finer levels: refine each pixel into four, and improve these.
    for level in range(levels - 1, -1, -1):
        finer = _Examples(pyramid[level], guides[level])
        places = finer.children(places, table)
        for _ in range(_ROUNDS if level else 1):
            places = finer.continued(places)
        table = finer
    return places[:size, :size]


# (places, rows, columns, neighbourhoods (h, w, D)) -> new places (h, w)
_Best = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _as_light(guide: Tensor | None, examples: list[Tensor], side: int) -> Tensor | None:
    """Map the lightness of a guide to that of the examples, by rank, and pad it to `side` pixels.

    Args:
        guide: (h, w), or None.
        examples: (C, h, w) each.
        side: of the result, pixels.

    Returns:
        (side, side), or None without a guide.
    """
    if guide is None:
        return None
    light = torch.cat([e.mean(0).flatten() for e in examples]).sort().values
    _, which, counts = guide.unique(return_inverse=True, return_counts=True)
    # Equal values share their mean rank, from 0 to 1: a flat area of the guide stays flat.
    rank = (counts.cumsum(0) - (counts + 1) / 2) / max(1, guide.numel() - 1)
    matched = light[(rank * (len(light) - 1)).round().long()][which]
    more = [side - n for n in matched.shape]
    return F.pad(matched[None], (0, more[1], 0, more[0]), mode="replicate")[0]


class _Examples:
    """Hold the n pixels of the examples at one level, their neighbourhoods, and the guide.

    Args:
        examples: (C, h, w) each.
        guide: lightness of the texture at this level, or None.

    Attributes:
        colors: (C, n), of all pixels in a row.
        number, row, column: (n,), the example and the position of each pixel.
        first: index of the first pixel of each example.
        size: (height, width) of each example.
        whole: indices of the pixels with complete neighbourhoods.
        kernel: (D, C, 5, 5), principal components of the neighbourhoods.
        surroundings: (n, D), neighbourhoods in these components; 0 for incomplete ones.
        light: (n,), lightness.
        spread: total variance of the neighbourhoods.
    """

    def __init__(self, examples: list[Tensor], guide: Tensor | None) -> None:
        sizes = [(e.shape[1], e.shape[2]) for e in examples]
        starts = np.cumsum([0, *(h * w for h, w in sizes)]).tolist()

        self.guide = guide
        self.colors = torch.cat([e.flatten(1) for e in examples], 1)
        self.number = _flat([torch.tensor(k) for k in range(len(sizes))], sizes)
        self.row = _flat([torch.arange(h)[:, None] for h, _ in sizes], sizes)
        self.column = _flat([torch.arange(w) for _, w in sizes], sizes)
        self.first = torch.tensor(starts[:-1])
        self.size = torch.tensor(sizes)

        height, width = self.size[self.number].unbind(1)
        inside = (self.row >= _REACH) & (self.row < height - _REACH)
        inside &= (self.column >= _REACH) & (self.column < width - _REACH)
        self.whole = inside.nonzero().flatten()

        self.kernel = self._principal(
            torch.cat([F.unfold(e[None], 2 * _REACH + 1)[0] for e in examples], 1)
        )
        self.surroundings = torch.zeros(len(self.row), len(self.kernel))
        self.surroundings[self.whole] = torch.cat(
            [F.conv2d(e[None], self.kernel)[0].flatten(1) for e in examples], 1
        ).T
        self.light = self.colors.mean(0)
        self.spread = self.surroundings[self.whole].var(0).sum()

    @staticmethod
    def _principal(patches: Tensor) -> Tensor:
        """Return the first principal components of neighbourhoods as a convolution's kernel.

        patches: (C * 25, m). The result is (D, C, 5, 5).
        """
        centred = patches - patches.mean(1, keepdim=True)
        vectors = torch.linalg.eigh((centred @ centred.T).double()).eigenvectors
        best = vectors.flip(1)[:, :_DIMS].T.float()  # eigh sorts from small to large
        return best.reshape(len(best), -1, 2 * _REACH + 1, 2 * _REACH + 1)

    def searched(self, places: Tensor) -> Tensor:
        """Return places where each pixel takes a fitting one of all with whole neighbourhoods.

        Each of these is taken equally often.
        """
        candidates = self.surroundings[self.whole]
        norms = candidates.square().sum(1)
        softness = _SOFT * self.spread.clamp(min=1e-9)

        def best(_: Tensor, rows: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
            # squared distance up to a constant, plus the deviation from the guide
            off_guide = self._guide_cost(self.light[self.whole], rows, columns, -1)
            cost = norms - 2 * targets @ candidates.T + off_guide
            return self.whole[_fairly(cost.flatten(0, 1) / softness)].view(targets.shape[:2])

        return self._by_quarters(places, best)

    def continued(self, places: Tensor) -> Tensor:
        """Return places where each pixel takes the best of nine continuations.

        A continuation extends what the pixel itself or one of its eight neighbours shows.
        """

        def best(places: Tensor, rows: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
            # If a neighbour shows some pixel, then this pixel should show the one next to that.
            height, width = places.shape
            continuations = []
            for down, right in _AROUND:
                neighbours = places[((rows + down) % height)[:, None], (columns + right) % width]
                continuations.append(self.moved(neighbours, -down, -right))
            candidates = torch.stack(continuations)
            distance = (self.surroundings[candidates] - targets).square().sum(-1)
            distance += self._guide_cost(self.light[candidates], rows, columns, 0)
            return candidates.gather(0, distance.argmin(0, keepdim=True))[0]

        return self._by_quarters(places, best)

    def _guide_cost(
        self, light: Tensor, rows: Tensor, columns: Tensor, candidates: int
    ) -> Tensor | float:
        """Return the cost of lightnesses that differ from the guide.

        Args:
            light: lightness of candidates, (k, h, w) or (m,).
            rows: (h,), of the texture.
            columns: (w,), of the texture.
            candidates: dimension of the candidates in the result: 0, or -1 for light (m,).
        """
        if self.guide is None:
            return 0.0
        target = self.guide[rows[:, None], columns]
        off = light - (target[..., None] if candidates else target)
        return _GUIDE * self.spread / self.light.var().clamp(min=1e-6) * off.square()

    def children(self, places: Tensor, coarser: "_Examples") -> Tensor:
        """Convert places of the next coarser level to places of this one, four for each."""
        large = places.repeat_interleave(2, 0).repeat_interleave(2, 1)
        down = torch.arange(large.shape[0]) % 2
        right = torch.arange(large.shape[1]) % 2
        row = 2 * coarser.row[large] + down[:, None]
        column = 2 * coarser.column[large] + right
        return self._nearest_whole(coarser.number[large], row, column)

    def moved(self, places: Tensor, down: int, right: int) -> Tensor:
        """Return the places at an offset from others, within their examples.

        Args:
            places: indices of pixels, of any shape.
            down: offset in rows.
            right: offset in columns.
        """
        row = self.row[places] + down
        column = self.column[places] + right
        return self._nearest_whole(self.number[places], row, column)

    def _nearest_whole(self, number: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Return the pixels at positions of examples, or the nearest with whole neighbourhoods."""
        height, width = self.size[number].unbind(-1)
        row = row.clamp(min=_REACH).minimum(height - 1 - _REACH)
        column = column.clamp(min=_REACH).minimum(width - 1 - _REACH)
        return self.first[number] + row * width + column

    def _by_quarters(self, places: Tensor, best: _Best) -> Tensor:
        """Update each quarter of the pixels in turn by `best`; opposite edges are neighbours."""
        places = places.clone()
        for quarter in range(4):
            # every second row and column, so that the pixels of a quarter do not touch
            top, left = divmod(quarter, 2)
            rows = torch.arange(top, places.shape[0], 2)
            columns = torch.arange(left, places.shape[1], 2)
            shown = F.pad(self.colors[:, places][None], (_REACH,) * 4, mode="circular")
            targets = F.conv2d(shown, self.kernel)[0].permute(1, 2, 0)[rows[:, None], columns]
            places[rows[:, None], columns] = best(places, rows, columns, targets)
        return places


def _flat(values: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
    """Expand a value of each example to its size, and concatenate all pixels in a row."""
    return torch.cat(
        [value.expand(size).flatten() for value, size in zip(values, sizes, strict=True)]
    )


def _fairly(costs: Tensor) -> Tensor:
    """Assign one of m candidates to each of N pixels, so that candidates are used evenly.

    Each pixel takes its cheapest candidate at prices that spread the demand evenly (Sinkhorn 1967).
    Without prices, plain candidates would win: in a random texture, their neighbourhoods fit
    everywhere a little.

    costs: (N, m). The result is (N,), indices of candidates.
    """
    costs = costs - costs.min(1, keepdim=True).values
    price = costs.new_zeros(costs.shape[1])
    for _ in range(_PRICINGS):
        gain = -torch.logsumexp(-costs - price, 1, keepdim=True)
        price = torch.logsumexp(gain - costs, 0)
    return (costs + price).argmin(1)


def _half(x: Tensor) -> Tensor:
    """Blur an image (C, h, w) and halve its sides, rounded up."""
    kernel = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    h, w = x.shape[1:]
    x = F.pad(x[:, None], (1, 1 + w % 2, 1, 1 + h % 2), mode="replicate")
    # one axis after the other
    return F.conv2d(
        F.conv2d(x, kernel.view(1, 1, 4, 1), stride=(2, 1)), kernel.view(1, 1, 1, 4), stride=(1, 2)
    )[:, 0]
