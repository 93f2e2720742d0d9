"""Losses that attacks maximise.

K classes. A score is score(logits (B, K) float32, y (B,)) -> (B,), larger when the prediction is
worse.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.attacks.arguments import at_least_one
from vidrobust.attacks.outputs import BadSamples, called, checked_output

Loss = Callable[[Tensor], Tensor]
Predict = Callable[[Tensor], Tensor]
Score = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, (B,)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest other logit less that of y (Carlini and Wagner 2017): positive where the
    prediction is wrong.
    """
    own = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(1) - _of(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, eq. 6), which no rescaling of the logits
    changes.

    Needs three classes at least.
    """
    top = _top(logits, 3, "DLR")
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def cosine(logits: Tensor, y: Tensor) -> Tensor:
    """One less the cosine between the logits and the class y; scale-free as `dlr`, for any number
    of classes.
    """
    return 1 - F.cosine_similarity(logits, F.one_hot(y, logits.shape[1]).to(logits.dtype), dim=1)


def escape(logits: Tensor, y: Tensor) -> Tensor:
    """log(1 - p_y) (Wei et al., AAAI 2019)."""
    other = logits.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -torch.inf)
    return other.logsumexp(1) - logits.logsumexp(1)


def flicker_hinge(logits: Tensor, y: Tensor, m: float = 0.05) -> Tensor:
    """-max(0, min(l^2 / m, l)) with l = p_y - max p_other + m (Pony et al., CVPR 2021): 0 once
    broken by m.
    """
    p = logits.softmax(1)
    gap = m - margin(p, y)
    return -torch.minimum(gap * gap / m, gap).clamp(min=0)


def toward(target: Tensor) -> Score:
    """The score z_target - z_y: positive where the target class (B,) beats y, though a third may
    beat both.

    To be taken for the target itself, `Misclassify(predict, target, targeted=True)`.
    """
    return _Targeted(target, ratio=False)


def dlr_toward(target: Tensor) -> Score:
    """The targeted DLR loss (Croce and Hein 2020, eq. 7). Needs four classes at least."""
    return _Targeted(target, ratio=True)


@dataclass(frozen=True)
class _Targeted:
    target: Tensor
    ratio: bool

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        gap = _of(logits, self.target) - _of(logits, y)
        if not self.ratio:
            return gap
        top = _top(logits, 4, "targeted DLR")
        return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)

    def at(self, rows: Tensor) -> "_Targeted":
        return replace(self, target=self.target[rows])


# name -> untargeted score
SCORES: dict[str, Score] = {
    "ce": cross_entropy,
    "dlr": dlr,
    "margin": margin,
    "cosine": cosine,
    "escape": escape,
    "flicker_hinge": flicker_hinge,
}


@dataclass(frozen=True)
class Misclassify:
    """loss(x) -> (B,) of a classifier: `score` of its logits. Attacks also learn from it which
    samples are broken.

    predict: (B, C, T, H, W) in [0, 1] -> (B, K) logits, not probabilities. y: (B,) integer labels.
    score: a function or its name in SCORES. clean: the clips themselves; with them a sample is
    finished (and costs nothing more) when it is also wrong after rounding to uint8 (`rounded`),
    which costs a forward pass of those that are wrong. targeted: y are the classes that x is to be
    taken for, the score (cross-entropy or margin; the ratio of DLR can rise without getting there)
    is turned round, and where this says wrong, read "taken for y". Raises ValueError for
    probabilities, NaN, labels that are no class or not one a sample, and an unknown score.
    """

    predict: Predict
    y: Tensor
    score: Score | str = cross_entropy
    clean: Tensor | None = None
    targeted: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "y", checked_labels(self.y))
        if isinstance(self.score, str):
            if self.score not in SCORES:
                raise ValueError(f"no score {self.score!r}; there are {', '.join(SCORES)}")
            object.__setattr__(self, "score", SCORES[self.score])

    def __call__(self, x: Tensor) -> Tensor:
        return self._rate(self.logits(x))

    def logits(self, x: Tensor) -> Tensor:
        """Return (B, K) float32 logits of x, checked; `predict` must leave x as it is."""
        self.require_labels(x)
        logits = checked_logits(called(self.predict, x, compare=True), self.y)
        if isinstance(self.score, _Targeted):
            checked_logits(logits, self.score.target)
        return logits

    def require_labels(self, x: Tensor) -> None:
        """Raises ValueError unless there is one label a sample, and one target where the score has
        some.
        """
        if len(x) != len(self.y):
            raise ValueError(f"{len(x)} samples, but {len(self.y)} labels")
        if isinstance(self.score, _Targeted) and len(x) != len(self.score.target):
            raise ValueError(f"{len(x)} samples, but {len(self.score.target)} targets")

    def judge(self, x: Tensor, *, check: bool = True) -> tuple[Tensor, Tensor]:
        """(score (B,), level (B,)): 0 right, 1 wrong, 2 finished: wrong for good, and nothing is
        left to break.

        Wrong for good: by more than another batch size or kernel changes. check: as in `logits`;
        each look at numbers makes a GPU wait, so that an attack checks once a start.
        """
        return self.judge_logits(
            x, self.logits(x) if check else called(self.predict, x).float(), check=check
        )

    def judge_logits(
        self, x: Tensor, logits: Tensor, *, check: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return what `judge` does, from logits that are there already.

        Args:
            x: the clips.
            logits: (B, K), of x.
            check: whether these went through `logits`, and hold no NaN.
        """
        value = self._rate(logits)
        if not check:  # a NaN that the score does not look at
            value = torch.where(finite_logits(logits), value, torch.nan)
        wrong = (logits.detach().argmax(1) == self.y) == self.targeted
        level, for_good = wrong.long(), self._for_good(logits.detach(), self.y)
        if self.clean is None or not for_good.any():
            return value, level + for_good if self.clean is None else level
        rows = for_good.nonzero().flatten()
        with torch.no_grad():
            seen = rounded(x.detach()[rows], self.clean[rows])
            level[rows] += self._for_good(self.predict(seen).float(), self.y[rows])
        return value, level

    @property
    def crosses_zero(self) -> bool:
        """Whether the score may be positive exactly where the prediction is wrong, as `margin`; CE
        is not.
        """
        return self.score not in (cross_entropy, cosine, escape, flicker_hinge)

    def _rate(self, logits: Tensor) -> Tensor:
        assert callable(self.score)
        value = self.score(logits, self.y)
        return -value if self.targeted else value

    def _for_good(self, logits: Tensor, y: Tensor) -> Tensor:
        """Wrong by more of the logits than batch sizes (on a GPU also TF32 and choices of kernels)
        change.
        """
        gap, noise = margin(logits, y), 1e-3 if logits.is_cuda else 1e-5
        return (-gap if self.targeted else gap) > noise * logits.abs().amax(1)

    def at(self, rows: Tensor) -> "Misclassify":
        """The same for some of the samples."""
        score = self.score.at(rows) if isinstance(self.score, _Targeted) else self.score
        return replace(
            self,
            y=self.y[rows],
            score=score,
            clean=None if self.clean is None else self.clean[rows],
        )


def rounded(x_adv: Tensor, x: Tensor) -> Tensor:
    """x_adv as a file of 8-bit pixels holds it, no value farther from that of x than it was.

    Rounding to the nearest alone would leave the budget: 0.5/255 would become 1/255. Such values go
    to the next one toward x.
    """
    nearest = (x_adv * 255).round() / 255
    toward_x = nearest - (nearest - x).sign() / 255
    beyond = ((nearest - x).abs() > (x_adv - x).abs() + 1e-6) & (
        (toward_x - x).abs() < (nearest - x).abs()
    )
    return torch.where(beyond, ((toward_x * 255).round() / 255).clamp(0, 1), nearest)


def eot(
    predict: Predict, draws: int, transform: Callable[[Tensor], Tensor] | None = None
) -> Predict:
    """Expectation over transformations (Athalye et al. 2018): log-probabilities averaged over
    `draws` passes.

    For a model that draws random numbers, or one seen through `transform`(x) -> x, random and
    differentiable. All draws' graphs are held until the backward pass.
    """

    at_least_one(draws=draws)

    def expected(x: Tensor) -> Tensor:
        seen = (x if transform is None else transform(x) for _ in range(draws))
        logits = (checked_output(called(predict, one), len(one)).float() for one in seen)
        passes = [each.log_softmax(1) for each in logits]
        return torch.stack(passes).mean(0)

    return expected


def checked_labels(y: Tensor) -> Tensor:
    """(B,) int64. Raises ValueError for another shape, such as (B, 1) or one-hot, and for what is
    not an integer.
    """
    if (
        not isinstance(y, Tensor)
        or y.ndim != 1
        or y.dtype.is_floating_point
        or y.dtype == torch.bool
    ):
        found = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y must be a (B,) tensor of integer labels; got {found}")
    return y.long()


def checked_logits(logits: Tensor, y: Tensor) -> Tensor:
    """Return (B, K) float32 logits.

    Raises ValueError for what is no such tensor, for probabilities, for labels that are no class,
    and, as `BadSamples`, for NaN and +inf. A logit of -inf is a class that is never predicted.
    """
    logits = checked_output(logits, len(y))
    require_classes(y, logits.shape[1])
    bad = ~finite_logits(logits)
    if bad.any():
        kind = "NaN" if logits.isnan().any() else "infinite"
        lost = bad.nonzero().flatten().tolist()
        raise BadSamples(lost, f"the model gives {kind} logits for samples {{}}; {_CAUSES}")
    require_logits(logits)
    return logits.float()


def require_logits(logits: Tensor) -> None:
    """Raise ValueError for probabilities (B, K) in their place."""
    if _are_probabilities(logits.detach()):
        raise ValueError(
            "the model returns probabilities; logits are needed: leave out its softmax"
        )


_MANY = 4
_CAUSES = (
    "look for NaN weights of a run that diverged, and for roots, logarithms and divisions of 0"
)


def require_classes(y: Tensor, classes: int) -> None:
    """Raise ValueError for labels below 0, or at and above the number of classes."""
    if y.numel() and not (y.min() >= 0 and y.max() < classes):
        raise ValueError(
            f"labels span {y.min()} to {y.max()}; the model has classes 0 to {classes - 1}: "
            "leave out samples without a label"
        )


def finite_logits(logits: Tensor) -> Tensor:
    """Return (B,) bool: which samples have logits without NaN and +inf, and one that is finite."""
    return ~(logits.isnan() | logits.isposinf()).any(1) & logits.isfinite().any(1)


def _are_probabilities(logits: Tensor) -> bool:
    if not len(logits) or not (logits >= 0).all():
        return False
    away = (logits.float().sum(1) - 1).abs()
    if (away <= logits.shape[1] * torch.finfo(logits.dtype).eps).all():
        return True
    # a mean of coarse softmaxes, or one that was clamped; of few samples logits may look so
    if len(logits) >= _MANY and (away <= 0.01).all():
        return True
    # a softmax in bf16 or half that was cast afterwards is rounded as these are
    return any(
        bool((away <= 4 * torch.finfo(coarse).eps).all())
        and torch.equal(logits, logits.to(coarse).to(logits.dtype))
        for coarse in (torch.bfloat16, torch.float16)
        if logits.dtype in (torch.float32, torch.float64)
    )


def _of(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y.unsqueeze(1)).squeeze(1)


def _top(logits: Tensor, classes: int, name: str) -> Tensor:
    """(B, classes) largest logits, falling."""
    if logits.shape[1] < classes:
        raise ValueError(
            f"{name} needs {classes} classes, the model has {logits.shape[1]}; take margin or ce"
        )
    return logits.topk(classes, dim=1).values
