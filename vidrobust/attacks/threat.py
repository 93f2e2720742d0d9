"""Threat models: norm, budget, and which pixels or frames may change.

A batch of clips is (B, C, T, H, W) in [0, 1]: batch, channel, frame, row, column. An image is a
clip with T = 1, or (B, C, H, W).
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vidrobust.attacks.outputs import BadSamples

Norm = Literal["linf", "l2", "l2_frame", "l1"]
Support = Literal["dense", "tube", "flicker", "frames", "patch", "border", "pixels"]
# support -> the places that have a name; the first one is the default
_PLACES = {
    "frames": ("saliency", "uniform", "random"),
    "patch": ("search", "random"),
    "pixels": ("saliency", "random"),
}
_LARGEST = 1e18  # radii are squared in float32
# support, k, place, norm, eps
_NAME = re.compile(
    r"(?:([a-z]+)(\d*)(?:@([a-z]+|\d+(?:\+\d+)*))?-)?(linf|l2_frame|l2|l1)-([0-9./e+-]+)"
)


@dataclass(frozen=True)
class ThreatModel:
    """The allowed perturbed clips: clip(x + delta, 0, 1), delta of norm at most eps on a support.

    Attributes:
        norm: linf, l2 or l1 of the whole change, or l2_frame, the largest L2 norm of a frame's
            change. At T = 1 l2_frame is the L2 norm of the image, so that budgets transfer.
        eps: the budget, in [0, 1] units.
        support: where delta may differ from 0.
            dense: any pixel.
            tube: any pixel, constant in time.
            flicker: constant in space, one colour per frame.
            frames: `k` whole frames.
            patch: a square of `k` x `k` pixels, at the same place in every frame.
            border: `k` pixels along the edges.
            pixels: `k` pixels of each frame.
        k: number of frames or pixels, for frames, patch, border and pixels.
        place: which frames or pixels.
            frames: "saliency" (the attack takes those with the largest gradient; default),
            "uniform" (evenly spaced), "random", or their numbers.
            patch: "search" (where the gradient is largest; default), "random", or (top, left).
            pixels: "saliency" (default) or "random".

    Raises:
        ValueError: the norm, support or place does not exist. Or eps is below 0, or beyond what
            float32 holds. Or k is missing or has no meaning, or a frame number is listed twice.
    """

    norm: Norm = "linf"
    eps: float = 8 / 255
    support: Support = "dense"
    k: int = 0
    place: str | tuple[int, ...] = ""

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm) or self.support not in get_args(Support):
            raise ValueError(
                f"no threat model {self.norm} x {self.support}; norms: {', '.join(get_args(Norm))};"
                f" supports: {', '.join(get_args(Support))}"
            )
        try:
            object.__setattr__(self, "eps", float(self.eps))
        except (TypeError, ValueError):
            raise ValueError(
                f"eps={self.eps!r}: must be a number, such as 4 / 255; parse_threat reads"
                " 'linf-4/255'"
            ) from None
        if not 0 <= self.eps < float("inf"):
            raise ValueError(f"eps={self.eps}: must be at least 0, in [0, 1] units")
        if self.eps > _LARGEST:
            raise ValueError(
                f"eps={self.eps:g}: must be at most {_LARGEST:g}, whose square float32 still holds;"
                " write a smaller one, in [0, 1] units"
            )
        if self.norm == "linf" and self.eps > 1:
            # above 1.5 it was most likely meant in units of 255
            remedy = f"; write {self.eps:g}/255" if self.eps >= 1.5 else ""
            raise ValueError(
                f"eps={self.eps:g}: must be at most 1, as Linf 1 allows any clip in [0, 1]{remedy}"
            )
        if not isinstance(self.place, str):
            object.__setattr__(self, "place", tuple(map(int, self.place)))
        self._check_size()
        self._check_place()

    def _check_size(self) -> None:
        """Raise ValueError where k is missing, or given without a meaning."""
        sized = self.support in ("frames", "patch", "border", "pixels")
        if sized != (self.k > 0):
            if sized:
                remedy = "k must be the number of frames or pixels, at least 1"
            else:
                remedy = "k is for frames, patch, border and pixels only"
            raise ValueError(f"support={self.support}, k={self.k}: {remedy}")

    def _check_place(self) -> None:
        """Raise ValueError for a place that the support does not have."""
        named = _PLACES.get(self.support, ())
        if isinstance(self.place, str):
            if self.place and self.place not in named:
                remedy = (
                    f"must be one of {', '.join(named)}" if named else "this support has no place"
                )
                raise ValueError(f"support={self.support}, place={self.place!r}: {remedy}")
            return
        # a frame that is listed twice would be perturbed by up to twice the budget
        expected = self.k if self.support == "frames" else 2
        twice = self.support == "frames" and len(set(self.place)) < len(self.place)
        if (
            self.support not in ("frames", "patch")
            or min(self.place, default=-1) < 0
            or len(self.place) != expected
            or twice
        ):
            raise ValueError(
                f"support={self.support}, k={self.k}, place={self.place}: frames take k different"
                " frame numbers, a patch takes (top, left)"
            )

    def __str__(self) -> str:
        """Return the name that `parse_threat` reads.

        Examples: `linf-4/255`, `flicker-linf-8/255`, `frames2@0+5-linf-8/255`.
        """
        return f"{self.kind}-{_written(self.eps)}"

    @property
    def kind(self) -> str:
        """Return the name without the budget: `linf`, `flicker-linf`, `frames2@0+5-linf`."""
        if self.support == "dense":
            return self.norm
        place = self.place if isinstance(self.place, str) else "+".join(map(str, self.place))
        at_place = f"@{place}" if place else ""
        return f"{self.support}{self.k or ''}{at_place}-{self.norm}"

    @property
    def places(self) -> str | tuple[int, ...]:
        """Return `place`, or its default."""
        return self.place or _PLACES.get(self.support, ("",))[0]


def _written(eps: float) -> str:
    """Return eps as a person writes it, such as 0.5 or 4/255.

    It has 12 digits, as the last bits of n/255 are noise.
    """
    plain = f"{eps:.12g}"
    of_255 = f"{eps * 255:.12g}/255"
    return of_255 if len(of_255) < len(plain) else plain


def parse_threat(text: str) -> ThreatModel:
    """Return the threat model of a name, `[support[k][@place]-]norm-eps`.

    Examples: `linf-4/255`, `l2_frame-0.5`, `patch30@10+12-linf-1`.

    Raises:
        ValueError: for anything else, with the reason.
    """
    match = _NAME.fullmatch(text.strip())
    if not match:
        raise ValueError(
            f"{text!r} is no threat model; write norm-eps or support-norm-eps: linf-4/255, "
            "flicker-linf-8/255, frames4-l2-0.5, patch30@10+12-linf-1"
        )
    support, k, place, norm, eps = match.groups()
    try:
        numerator, _, denominator = eps.partition("/")
        # a denominator of infinity would make a budget of 0
        if float(denominator or 1) == float("inf"):
            raise ValueError
        size = float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r}: {eps!r} is no number; write 0.03 or 8/255") from None
    where = tuple(map(int, place.split("+"))) if place and place[0].isdigit() else place or ""
    return ThreatModel(norm, size, support or "dense", int(k or 0), where)  # type: ignore[arg-type]


def as_clip(x: Tensor) -> Tensor:
    """Return images (B, C, H, W) as clips (B, C, 1, H, W), and clips as they are.

    Raises:
        ValueError: for another number of dimensions.
        TypeError: for arrays.
    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f"expected a tensor, got {type(x).__name__}; torch.from_numpy makes one of an array"
        )
    if x.ndim not in (4, 5):
        raise ValueError(
            f"expected clips (B, C, T, H, W) or images (B, C, H, W), got shape {tuple(x.shape)}"
        )
    return x.unsqueeze(2) if x.ndim == 4 else x


def require_threat(threat: ThreatModel) -> None:
    """Raise TypeError for anything but a ThreatModel, such as a threat's name."""
    if not isinstance(threat, ThreatModel):
        raise TypeError(
            f"threat={threat!r}: must be a ThreatModel; parse_threat('linf-4/255') makes one from"
            " its name"
        )


def check_input(x: Tensor) -> None:
    """Raise ValueError unless x is a float clip in [0, 1], channels in dimension 1.

    NaN raises it as `BadSamples`. Each message says what to change.
    """
    as_clip(x)
    if x.dtype not in (torch.float32, torch.float64):
        remedy = (
            "x.float() / 255 makes one of uint8 pixels"
            if x.dtype == torch.uint8
            else "cast inside predict"
        )
        raise ValueError(f"x.dtype={x.dtype}: x must be float32 or float64; {remedy}")
    if len(x) and not x.numel():
        raise ValueError(
            f"x of shape {tuple(x.shape)} has no pixels; give clips of at least one frame"
        )
    _check_layout(x)
    if not x.numel():
        return
    low = x.min()
    high = x.max()
    if low >= 0 and high <= 1:
        return
    if low.isnan():
        samples = x.flatten(1).isnan().any(1).nonzero().flatten().tolist()
        raise BadSamples(samples, "x holds NaN in samples {}; leave them out")
    # the range shows the likely cause: rounding, uint8 values, or normalised values
    if low >= -1e-3 and high <= 1 + 1e-3:
        remedy = "resizing leaves it by rounding; give x.clamp(0, 1)"
    elif low >= 0 and high > 1.5:
        remedy = "divide by 255"
    else:
        remedy = "attack before normalisation, and let the model normalise"
    raise ValueError(
        f"the input must lie in [0, 1], this one spans [{low:.9g}, {high:.9g}]; {remedy}"
    )


def _check_layout(x: Tensor) -> None:
    """Raise ValueError for clips and images whose channels seem not to be in dimension 1."""
    if x.shape[1] <= 3:
        return
    if x.shape[-1] == 3:
        places = "(B, H, W, C)" if x.ndim == 4 else "(B, T, H, W, C)"
        remedy = f"x.movedim(-1, 1), and .movedim(1, -1) inside predict, if they are {places}"
    elif x.ndim == 5 and x.shape[2] == 3:
        remedy = (
            "x.transpose(1, 2), and .transpose(1, 2) inside predict, if they are (B, T, C, H, W)"
        )
    else:
        return
    order = "(B, C, H, W)" if x.ndim == 4 else "(B, C, T, H, W)"
    raise ValueError(
        f"x of shape {tuple(x.shape)}: {x.shape[1]} channels and a dimension of 3 elsewhere; "
        f"clips are {order}: give {remedy}"
    )


def shared_dims(support: str) -> tuple[int, ...]:
    """Return the dimensions of a clip along which a perturbation is constant."""
    return {"tube": (2,), "flicker": (3, 4)}.get(support, ())


def norm_of(norm: str, change: Tensor) -> Tensor:
    """Return the norm of each sample's change (B, C, T, H, W), (B,) float32."""
    change = change.float()
    if norm == "linf":
        return change.abs().flatten(1).amax(1)
    if norm == "l1":
        return change.abs().flatten(1).sum(1)
    if norm == "l2":
        return change.flatten(1).norm(dim=1)
    return change.transpose(1, 2).flatten(2).norm(dim=2).amax(1)


def explain(threat: ThreatModel, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest delta with x_adv = clip(x + delta, 0, 1).

    Where x_adv is 0 or 1, clipping hides how large delta is: such a pixel only bounds it.

    Args:
        threat: decides along which dimensions delta is constant.
        x: the clips.
        x_adv: perturbed clips, shaped as x.

    Returns:
        delta, shaped as clips; and (B,) how far pixels that share a delta disagree about it.

    Raises:
        ValueError: x and x_adv differ in shape.
    """
    require_threat(threat)
    x = as_clip(x)
    x_adv = as_clip(x_adv)
    if x.shape != x_adv.shape:
        raise ValueError(
            f"clips of {tuple(x.shape)} and perturbed clips of {tuple(x_adv.shape)}: the shapes"
            " must be equal"
        )
    change = x_adv - x
    dims = shared_dims(threat.support)
    if not dims:
        return change, change.new_zeros(len(x))

    # The bounds on a shared delta: a black pixel says that delta is at most its change, a white one
    # that it is at least that, any other pixel says both.
    at_least = torch.where(x_adv <= 0, -torch.inf, change).amax(dims, keepdim=True)
    at_most = torch.where(x_adv >= 1, torch.inf, change).amin(dims, keepdim=True)
    crossed = (at_least - at_most).clamp(min=0)

    # the allowed value nearest to 0, or the middle where the bounds cross
    smallest = torch.zeros_like(at_least).clamp(at_least, at_most)
    delta = torch.where(crossed > 0, (at_least + at_most) / 2, smallest)
    return delta.expand_as(x), crossed.flatten(1).amax(1)


def measure(threat: ThreatModel, x: Tensor, x_adv: Tensor) -> Tensor:
    """Return the size of each sample's perturbation in the threat's norm, (B,) float32.

    Args:
        threat: the threat model; its budget does not matter.
        x: the clips.
        x_adv: perturbed clips, shaped as x.
    """
    return norm_of(threat.norm, explain(threat, x, x_adv)[0])


def contains(threat: ThreatModel, x: Tensor, x_adv: Tensor, atol: float = 1e-6) -> Tensor:
    """Return whether each sample obeys budget, support and [0, 1], from its pixels, (B,) bool.

    NaN does not obey. Frames, patches and pixels that an attack may choose may lie anywhere, if
    there are no more than k of them.

    Args:
        threat: the threat model.
        x: the clips.
        x_adv: perturbed clips, shaped as x.
        atol: tolerance per pixel. Budgets of l2 and l1 also get the norm of 2^-24 in every changed
            pixel, the rounding of a float32 pixel.
    """
    delta, crossed = explain(threat, x, x_adv)
    slack = 0.0 if threat.norm == "linf" else norm_of(threat.norm, (delta != 0) * 2.0**-24)
    in_budget = norm_of(threat.norm, delta) <= threat.eps * (1 + 1e-6) + atol + slack
    in_range = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    return (
        in_budget
        & in_range
        & (crossed <= atol)
        & _in_place(threat, (as_clip(x_adv) - as_clip(x)).abs() > atol)
    )


def _in_place(threat: ThreatModel, changed: Tensor) -> Tensor:
    """Return whether the changed values (B, C, T, H, W) lie on the support, (B,) bool."""
    if threat.support == "frames":
        frames = changed.any(1).flatten(2).any(2)
        chosen = chosen_frames(threat, frames.shape[1])
        if chosen is not None:
            frames = frames.clone()
            frames[:, list(chosen)] = False
            return ~frames.any(1)
        return frames.sum(1) <= threat.k
    if threat.support == "pixels":
        return (changed.any(1).flatten(2).sum(2) <= threat.k).all(1)
    if threat.support not in ("patch", "border"):
        return torch.ones(len(changed), dtype=torch.bool, device=changed.device)
    pixels = changed.flatten(1, 2).any(1)  # (B, H, W)
    if threat.support == "border":
        inner = pixels[:, threat.k : -threat.k, threat.k : -threat.k]
        return ~inner.flatten(1).any(1)
    return _in_patch(threat, pixels)


def _in_patch(threat: ThreatModel, pixels: Tensor) -> Tensor:
    """Return whether the changed pixels (B, H, W) fit into the patch, (B,) bool."""
    fits = torch.ones(len(pixels), dtype=torch.bool, device=pixels.device)
    for axis, used in enumerate((pixels.any(2), pixels.any(1))):  # rows, columns
        numbers = torch.arange(used.shape[1], device=used.device)
        first = torch.where(used, numbers, used.shape[1]).amin(1)
        last = torch.where(used, numbers, -1).amax(1)
        if isinstance(threat.places, str):
            start = first
        else:
            start = torch.full_like(first, threat.places[axis])
        # no changed pixel at all fits anywhere: then last is -1
        fits &= (last < start + threat.k) & ((first >= start) | (last < 0))
    return fits


def chosen_frames(threat: ThreatModel, frames: int) -> tuple[int, ...] | None:
    """Return the frames of a threat that numbers them, or spaces them evenly.

    None where the attack chooses them, or random numbers do.
    """
    if threat.places == "uniform":
        return tuple((2 * i + 1) * frames // (2 * threat.k) for i in range(threat.k))
    return threat.places if isinstance(threat.places, tuple) else None


def require_fit(threat: ThreatModel, x: Tensor) -> None:
    """Raise ValueError when clips (B, C, T, H, W) are too small for the threat's support."""
    frames, height, width = x.shape[2:]
    if threat.support == "frames":
        if threat.k > frames:
            raise ValueError(
                f"{threat}: {threat.k} frames of a clip of {frames}; k must be at most the number"
                " of frames"
            )
        last = max(chosen_frames(threat, frames) or (0,))
        if last >= frames:
            raise ValueError(
                f"{threat}: a clip of {frames} frames has no frame {last}; they count from 0"
            )
    if threat.support == "pixels" and threat.k > height * width:
        raise ValueError(
            f"{threat}: {threat.k} pixels of frames of {height} x {width}; k must be at most the"
            " number of pixels"
        )
    if threat.support == "border" and 2 * threat.k >= min(height, width):
        raise ValueError(
            f"{threat}: a border of {threat.k} pixels leaves nothing of frames of {height} x"
            f" {width}"
        )
    if threat.support == "patch":
        top, left = (0, 0) if isinstance(threat.places, str) else threat.places
        if top + threat.k > height or left + threat.k > width:
            raise ValueError(
                f"{threat}: the patch does not fit into frames of {height} x {width} pixels"
            )
