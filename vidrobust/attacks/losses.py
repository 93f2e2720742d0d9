"""Losses that attacks maximise.

A score is a function score(logits (B, K) float32, y (B,)) -> (B,) over K classes. It is larger when
the prediction is worse.
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


# ------------------------------------------------------------------ untargeted scores


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy, (B,)."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the largest other logit minus the logit of y (Carlini and Wagner 2017), (B,).

    It is positive where the prediction is wrong.
    """
    is_label = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(is_label, -torch.inf).amax(1) - _of(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Return the difference of logits ratio (Croce and Hein 2020, eq. 6), (B,).

    Rescaling the logits does not change it. Needs at least three classes.
    """
    top = _top(logits, 3, "DLR")
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def cosine(logits: Tensor, y: Tensor) -> Tensor:
    """Return 1 minus the cosine between the logits and the one-hot vector of y, (B,).

    Rescaling the logits does not change it, as with `dlr`; any number of classes works.
    """
    return 1 - F.cosine_similarity(logits, F.one_hot(y, logits.shape[1]).to(logits.dtype), dim=1)


def escape(logits: Tensor, y: Tensor) -> Tensor:
    """Return log(1 - p_y) (Wei et al., AAAI 2019), (B,)."""
    others = logits.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -torch.inf)
    return others.logsumexp(1) - logits.logsumexp(1)


def flicker_hinge(logits: Tensor, y: Tensor, m: float = 0.05) -> Tensor:
    """Return -max(0, min(l^2 / m, l)) with l = p_y - max p_other + m (Pony et al., CVPR 2021).

    It is 0, its maximum, once the wrong class leads by m.

    Args:
        logits: (B, K).
        y: (B,) labels.
        m: the lead in probability, above 0.
    """
    p = logits.softmax(1)
    gap = m - margin(p, y)
    return -torch.minimum(gap * gap / m, gap).clamp(min=0)


# ------------------------------------------------------------------ targeted scores


def toward(target: Tensor) -> Score:
    """Return the score z_target - z_y for target classes (B,).

    It is positive where the target beats y, although a third class may beat both. To have the
    target itself predicted, use `Misclassify(predict, target, targeted=True)`.
    """
    return _Targeted(target, ratio=False)


def dlr_toward(target: Tensor) -> Score:
    """Return the targeted DLR loss (Croce and Hein 2020, eq. 7). Needs at least four classes."""
    return _Targeted(target, ratio=True)


@dataclass(frozen=True)
class _Targeted:
    """A score toward target classes, one per sample.

    Attributes:
        target: (B,) classes.
        ratio: divide the difference of logits as the targeted DLR does.
    """

    target: Tensor
    ratio: bool

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        gap = _of(logits, self.target) - _of(logits, y)
        if not self.ratio:
            return gap
        top = _top(logits, 4, "targeted DLR")
        return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)

    def at(self, rows: Tensor) -> "_Targeted":
        """Return the score of some of the samples."""
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


# ------------------------------------------------------------------ the loss of a classifier


@dataclass(frozen=True)
class Misclassify:
    """The loss of a classifier, x -> (B,): a score of its logits.

    Attacks also learn from it which samples are already misclassified.

    Attributes:
        predict: (B, C, T, H, W) in [0, 1] -> (B, K) logits, not probabilities.
        y: (B,) integer labels; with `targeted`, the classes to be predicted.
        score: a function of logits and y, or its name in SCORES.
        clean: the clean clips. If given, a sample is finished, and costs no further passes, only
            when it is also wrong after rounding to uint8 (`rounded`). The check costs a forward
            pass of the samples that are wrong.
        targeted: y are the classes that x should be predicted as. The score is negated, and
            "wrong" means "predicted as y". Use cross-entropy or margin: the ratio of DLR can rise
            without getting there.

    Raises:
        ValueError: for probabilities, NaN, an unknown score, labels that are not classes of the
            model, and anything but one label per sample.
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
                raise ValueError(f"score={self.score!r}: must be one of {', '.join(SCORES)}")
            object.__setattr__(self, "score", SCORES[self.score])

    def __call__(self, x: Tensor) -> Tensor:
        return self._rate(self.logits(x))

    def logits(self, x: Tensor) -> Tensor:
        """Return (B, K) float32 logits of x, checked; `predict` must leave x unchanged."""
        self.require_labels(x)
        logits = checked_logits(called(self.predict, x, compare=True), self.y)
        if isinstance(self.score, _Targeted):
            checked_logits(logits, self.score.target)
        return logits

    def require_labels(self, x: Tensor) -> None:
        """Raise ValueError unless x has one label per sample, and one target if there are any."""
        if len(x) != len(self.y):
            raise ValueError(f"{len(x)} samples, but {len(self.y)} labels")
        if isinstance(self.score, _Targeted) and len(x) != len(self.score.target):
            raise ValueError(f"{len(x)} samples, but {len(self.score.target)} targets")

    def judge(self, x: Tensor, *, check: bool = True) -> tuple[Tensor, Tensor]:
        """Return scores and levels of x.

        Levels are 0: right, 1: wrong, 2: finished. A finished sample is wrong by more than another
        batch size or kernel changes, and after rounding too if `clean` is given.

        Args:
            x: the clips.
            check: check the logits as `logits` does. Each check of values makes a GPU wait, so
                attacks check once per start.

        Returns:
            Scores (B,), and levels (B,).
        """
        logits = self.logits(x) if check else called(self.predict, x).float()
        return self.judge_logits(x, logits, check=check)

    def judge_logits(
        self, x: Tensor, logits: Tensor, *, check: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return what `judge` does, from logits that are already computed.

        Args:
            x: the clips.
            logits: (B, K), of x.
            check: the logits come from `logits`, and hold no NaN.
        """
        value = self._rate(logits)
        if not check:
            # mark NaN logits even of classes that the score does not use: argmax treats NaN as the
            # largest value
            value = torch.where(finite_logits(logits), value, torch.nan)
        detached = logits.detach()
        wrong = (detached.argmax(1) == self.y) == self.targeted
        level = wrong.long()
        clearly_wrong = self._is_clearly_wrong(detached, self.y)
        if self.clean is None:
            return value, level + clearly_wrong
        if not clearly_wrong.any():
            return value, level

        # only a sample that is clearly wrong is worth a pass of its rounded pixels
        rows = clearly_wrong.nonzero().flatten()
        with torch.no_grad():
            eight_bit = rounded(x.detach()[rows], self.clean[rows])
            level[rows] += self._is_clearly_wrong(self.predict(eight_bit).float(), self.y[rows])
        return value, level

    @property
    def crosses_zero(self) -> bool:
        """Return whether the score may be positive exactly where the prediction is wrong.

        This holds for `margin`, and not for cross-entropy. Scores that are not in SCORES are
        assumed to have this property.
        """
        return self.score not in (cross_entropy, cosine, escape, flicker_hinge)

    def _rate(self, logits: Tensor) -> Tensor:
        """Return the score of logits, negated for a targeted loss."""
        assert callable(self.score)
        value = self.score(logits, self.y)
        return -value if self.targeted else value

    def _is_clearly_wrong(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return (B,) bool: wrong by more than other batch sizes and kernels change logits."""
        gap = margin(logits, y)
        # on a GPU, TF32 and the choice of kernels change logits more than on a CPU
        noise = 1e-3 if logits.is_cuda else 1e-5
        return (-gap if self.targeted else gap) > noise * logits.abs().amax(1)

    def at(self, rows: Tensor) -> "Misclassify":
        """Return the loss of some of the samples."""
        return replace(
            self,
            y=self.y[rows],
            score=self.score.at(rows) if isinstance(self.score, _Targeted) else self.score,
            clean=None if self.clean is None else self.clean[rows],
        )


def rounded(x_adv: Tensor, x: Tensor) -> Tensor:
    """Return x_adv as 8-bit pixels, no value farther from that of x than it was.

    Rounding to the nearest value alone would leave the budget: 0.5/255 would become 1/255. Such
    values go to the next one toward x.
    """
    nearest = (x_adv * 255).round() / 255
    toward_x = nearest - (nearest - x).sign() / 255
    moved_away = (nearest - x).abs() > (x_adv - x).abs() + 1e-6
    # where x itself is no 8-bit value, the next value may lie beyond x, and farther away
    is_nearer = (toward_x - x).abs() < (nearest - x).abs()
    on_grid = ((toward_x * 255).round() / 255).clamp(0, 1)
    return torch.where(moved_away & is_nearer, on_grid, nearest)


def eot(
    predict: Predict, draws: int, transform: Callable[[Tensor], Tensor] | None = None
) -> Predict:
    """Return a model of log-probabilities averaged over passes (EOT, Athalye et al. 2018).

    It is for a model that draws random numbers, or one behind a random transform. The graphs of
    all passes are held until the backward pass.

    Args:
        predict: x -> (B, K) logits.
        draws: number of passes.
        transform: x -> x, random and differentiable; None: no transform.
    """

    at_least_one(draws=draws)

    def expected(x: Tensor) -> Tensor:
        inputs = (x if transform is None else transform(x) for _ in range(draws))
        logits = (checked_output(called(predict, v), len(v)).float() for v in inputs)
        return torch.stack([each.log_softmax(1) for each in logits]).mean(0)

    return expected


# ------------------------------------------------------------------ checks of labels and logits


def checked_labels(y: Tensor) -> Tensor:
    """Return (B,) int64 labels.

    Raises:
        ValueError: for another shape, such as (B, 1) or one-hot, and for anything but integers.
    """
    if (
        not isinstance(y, Tensor)
        or y.ndim != 1
        or y.dtype.is_floating_point
        or y.dtype == torch.bool
    ):
        kind = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y must be a (B,) tensor of integer labels; got {kind}")
    return y.long()


def checked_logits(logits: Tensor, y: Tensor) -> Tensor:
    """Return (B, K) float32 logits.

    A logit of -inf is a class that is never predicted.

    Raises:
        ValueError: for another shape or type, for probabilities, and for labels that are not
            classes. As `BadSamples`: for NaN and +inf.
    """
    logits = checked_output(logits, len(y))
    require_classes(y, logits.shape[1])
    bad = ~finite_logits(logits)
    if bad.any():
        kind = "NaN" if logits.isnan().any() else "infinite"
        samples = bad.nonzero().flatten().tolist()
        raise BadSamples(samples, f"the model gives {kind} logits for samples {{}}; {_CAUSES}")
    require_logits(logits)
    return logits.float()


def require_logits(logits: Tensor) -> None:
    """Raise ValueError if the (B, K) tensor holds probabilities."""
    if _are_probabilities(logits.detach()):
        raise ValueError(
            "the model returns probabilities; logits are needed: leave out its softmax"
        )


# from so many samples on, logits that all sum to about 1 are no coincidence
_ENOUGH_SAMPLES = 4
_CAUSES = (
    "look for NaN weights of a run that diverged, and for roots, logarithms and divisions of 0"
)


def require_classes(y: Tensor, classes: int) -> None:
    """Raise ValueError for labels outside 0 ... classes - 1."""
    if y.numel() and not (y.min() >= 0 and y.max() < classes):
        raise ValueError(
            f"labels span {y.min()} to {y.max()}; the model has classes 0 to {classes - 1}: "
            "leave out samples without a label"
        )


def finite_logits(logits: Tensor) -> Tensor:
    """Return (B,) bool: no logit is NaN or +inf, and at least one is finite."""
    return ~(logits.isnan() | logits.isposinf()).any(1) & logits.isfinite().any(1)


def _are_probabilities(logits: Tensor) -> bool:
    """Return whether the rows are not negative and sum to 1, up to the rounding of their type."""
    if not len(logits) or not (logits >= 0).all():
        return False
    error = (logits.float().sum(1) - 1).abs()
    if (error <= logits.shape[1] * torch.finfo(logits.dtype).eps).all():
        return True
    # a mean of coarse softmaxes, or one that was clamped; logits of few samples may look like that
    if len(logits) >= _ENOUGH_SAMPLES and (error <= 0.01).all():
        return True
    # a softmax in bf16 or half precision that was cast afterwards: every value is one of that type
    if logits.dtype not in (torch.float32, torch.float64):
        return False
    return any(
        bool((error <= 4 * torch.finfo(coarse).eps).all())
        and torch.equal(logits, logits.to(coarse).to(logits.dtype))
        for coarse in (torch.bfloat16, torch.float16)
    )


def _of(logits: Tensor, y: Tensor) -> Tensor:
    """Return the logit of each sample's class y, (B,)."""
    return logits.gather(1, y.unsqueeze(1)).squeeze(1)


def _top(logits: Tensor, classes: int, name: str) -> Tensor:
    """Return the (B, classes) largest logits, in decreasing order; name: of the loss."""
    if logits.shape[1] < classes:
        raise ValueError(
            f"{name} needs {classes} classes, the model has {logits.shape[1]}; use margin or ce"
        )
    return logits.topk(classes, dim=1).values
