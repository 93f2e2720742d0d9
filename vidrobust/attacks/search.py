"""Keep each sample's best iterate, and drop samples that are finished."""

import warnings

import torch
from torch import Tensor

from vidrobust.attacks.arguments import drawn
from vidrobust.attacks.ball import Ball, make_ball
from vidrobust.attacks.losses import Loss, Misclassify
from vidrobust.attacks.outputs import BadSamples, called, numbered
from vidrobust.attacks.threat import ThreatModel, as_clip, check_input, require_threat

# message of the errors for a loss that has no gradient
NO_GRADIENT = (
    "the loss has no gradient at x: something on its way detaches or runs without one; "
    "square and nes do without gradients"
)


class Search:
    """A run of an attack over a batch.

    `begin` opens a start over the samples that are not finished. `gradient` and `look` evaluate a
    delta of these samples, and keep what is best. `drop` leaves out the samples that have finished
    since. `result` returns each sample's best clip.

    A higher level is better (`Misclassify.judge`: wrong beats right), then a higher loss. Losses
    other than `Misclassify` have no levels, and their samples never finish.

    Attributes:
        ball: the allowed perturbations of the samples of the current start.
        rows: (n,) the numbers of these samples in the batch.
        broken: (n,) bool, the last evaluation found the sample wrong: level above 0, or for losses
            without levels a loss above 0.
        x: (B, ...) the clips.
        best: each sample's best clip so far, shaped as x.
        value: (B,) the loss of the best clip.
        level: (B,) the level of the best clip; -1 before the first evaluation.
    """

    ball: Ball
    rows: Tensor
    broken: Tensor

    def __init__(
        self,
        loss: Loss,
        x: Tensor,
        threat: ThreatModel,
        generator: torch.Generator | None = None,
        *,
        blind: bool = False,
        steady: bool = False,
    ) -> None:
        """Check the input, and prepare to attack it.

        Args:
            loss: (B, ...) -> (B,), to maximise.
            x: (B, C, T, H, W) or (B, C, H, W), in [0, 1].
            threat: which perturbations are allowed.
            generator: source of random places and starts.
            blind: draw a place that a gradient would choose; for black-box attacks.
            steady: make the same number of passes whatever the clips are, for losses that several
                processes compute together.

        Raises:
            TypeError: for a threat or generator of another type.
            ValueError: for clips outside [0, 1], and for labels of another batch.
        """
        check_input(x)
        require_threat(threat)
        if isinstance(loss, Misclassify):
            loss.require_labels(x)
        if not isinstance(generator, torch.Generator | None):
            raise TypeError(
                f"generator={generator!r}: must be a torch.Generator;"
                " torch.Generator().manual_seed(0) makes one"
            )
        # a clone of an inference tensor may ask for gradients, the tensor itself may not
        self.x = x.clone() if x.is_inference() else x.detach()
        self.threat = threat
        self.generator = generator
        self.blind = blind
        self.steady = steady
        self._loss = loss  # of the whole batch
        self._goal = loss  # of the samples of the ball
        self.best = self.x.clone()
        self.value = torch.full((len(x),), -torch.inf, device=x.device)
        self.level = torch.full((len(x),), -1, device=x.device)
        # (B,) bool: a loss or gradient of the sample was NaN or infinite
        self._not_finite = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    # ------------------------------------------------------------------ starts

    def begin(self, loss: Loss | None = None) -> bool:
        """Open a start: set `ball` and `rows` to the unfinished samples.

        Args:
            loss: replaces the loss from here on, for attacks that go through several losses.

        Returns:
            False when there are no such samples, or eps is 0 and nothing may move.
        """
        self._loss = loss or self._loss
        self.rows = (~self._done(self.level, self.value)).nonzero().flatten()
        if not len(self.rows) or self.threat.eps == 0:
            return False
        self._goal = self._at(self._loss, self.rows)
        self._finished = torch.zeros_like(self.rows, dtype=torch.bool)
        self._first = True  # the next evaluation is the first of this start
        x = self.x[self.rows]
        self.ball = make_ball(self.threat, x, lambda: self._saliency(x), self.generator)
        return True

    def place(self, where: Tensor) -> None:
        """Move the frames or the patch of the samples of the ball."""
        self.ball = self.ball.moved_to(where)

    # ------------------------------------------------------------------ evaluations

    def gradient(self, delta: Tensor, *, keep: bool = True) -> tuple[Tensor, Tensor]:
        """Evaluate delta, and return its loss (n,) and gradient, shaped as delta.

        Args:
            delta: of the n samples of the ball.
            keep: keep the clips that are best. False: delta lies outside the budget, as an
                intermediate point.

        Raises:
            BadSamples: the first evaluation of a start gives NaN. Later ones are only recorded, and
                `result` raises: reading each number here would make a GPU wait.
        """
        x_adv = self.ball.apply(delta)
        with numbered(self.rows):
            value, level, gradient = judged_gradient(self._goal, x_adv, check=self._first)
        self._end_first_evaluation(gradient)
        # A later loss would not show a NaN gradient in Linf: its sign is 0, so the step stands
        # still.
        not_finite = value.isnan() | ~gradient.flatten(1).sum(1).isfinite()
        self._not_finite[self.rows] |= not_finite
        if keep:
            self._keep(x_adv, value, level)
        return value, self.ball.pull(gradient, delta)

    def _end_first_evaluation(self, gradient: Tensor) -> None:
        """Warn if the gradient of a start's first evaluation is 0: the attack cannot move."""
        if self._first and not gradient.any():
            warnings.warn(
                "the gradient is 0 for every sample where the attack begins: it cannot move from"
                " there. Begin at a random point (pgd does), or look for what masks gradients",
                stacklevel=5,
            )
        self._first = False

    def slope(self, delta: Tensor) -> Tensor:
        """Return the gradient only, shaped as delta. Nothing is kept or checked."""
        x_adv = self.ball.apply(delta)
        return self.ball.pull(judged_gradient(self._goal, x_adv, check=False)[2], delta)

    @torch.no_grad()
    def peek(self, delta: Tensor) -> Tensor:
        """Return the loss (n,) of a delta that may lie outside the budget. Nothing is kept."""
        return judged(self._goal, self.ball.apply(delta), check=False)[0].float()

    @torch.no_grad()
    def look(self, delta: Tensor) -> Tensor:
        """Evaluate delta without its gradient, and return its loss (n,)."""
        x_adv = self.ball.apply(delta)
        with numbered(self.rows):
            value, level = judged(self._goal, x_adv, check=self._first)
        self._first = False
        # NaN of a classifier is a fault. Any other loss may be NaN at single iterates, which are
        # never kept; `result` raises where all of them are.
        if isinstance(self._goal, Misclassify):
            self._not_finite[self.rows] |= value.isnan()
        self._keep(x_adv, value, level)
        return value

    def drop(self, *state: Tensor) -> tuple[Tensor, ...]:
        """Leave out the samples that the last evaluation finished.

        state: tensors of n rows, returned without the rows of these samples.
        """
        if not isinstance(self._goal, Misclassify) or not self._finished.any():
            return state
        stay = (~self._finished).nonzero().flatten()
        self._finished = self._finished[stay]
        self.rows = self.rows[stay]
        self.ball = self.ball.at(stay)
        self._goal = self._at(self._goal, stay)
        return tuple(tensor[stay] for tensor in state)

    # ------------------------------------------------------------------ results

    def result(self) -> Tensor:
        """Return each sample's best clip.

        Raises:
            BadSamples: as `require_numbers` does, and where the loss was NaN at every iterate.
        """
        self.require_numbers()
        never_kept = torch.isneginf(self.value) & (self.level < 0)
        if self.threat.eps > 0 and never_kept.any():
            reason = "the loss of samples {} is NaN at every iterate"
            raise BadSamples(never_kept.nonzero().flatten().tolist(), reason)
        return self.best

    def require_numbers(self) -> None:
        """Raise BadSamples where a loss was NaN, or a gradient NaN or infinite.

        Without a gradient, only the loss of a classifier counts (`look`).
        """
        if self._not_finite.any():
            raise BadSamples(
                self._not_finite.nonzero().flatten().tolist(),
                "the loss or gradient of samples {} became NaN or infinite during the attack",
            )

    def _keep(self, x_adv: Tensor, value: Tensor, level: Tensor) -> None:
        """Keep the clips that are better than the best so far."""
        value = value.float()
        self._finished = self._done(level, value)
        self.broken = self._is_broken(value, level)

        # better: a higher level, or the same level and a higher loss; NaN is never better
        best_level = self.level[self.rows]
        best_value = self.value[self.rows]
        more_level = (level > best_level) & ~value.isnan()
        more_loss = (level == best_level) & (value > best_value)
        better = more_level | more_loss
        self.value[self.rows] = torch.where(better, value, best_value)
        self.level[self.rows] = torch.where(better, level, best_level)

        # Copying clips is the expensive part. If all of them are better, the new tensor itself is
        # kept. On a GPU, asking whether they are costs more than the copy.
        all_rows = len(self.rows) == len(self.x)
        if all_rows and not better.is_cuda and better.all():
            self.best = x_adv
            return
        so_far = self.best if all_rows else self.best[self.rows]
        best = torch.where(better.view(-1, *[1] * (x_adv.ndim - 1)), x_adv, so_far)
        if all_rows:
            self.best = best
        else:
            self.best[self.rows] = best

    def _is_broken(self, value: Tensor, level: Tensor) -> Tensor:
        return level > 0 if isinstance(self._goal, Misclassify) else value > 0

    def _done(self, level: Tensor, value: Tensor) -> Tensor:
        """Return whether samples of these levels and losses are finished."""
        return level >= 2

    def _saliency(self, x: Tensor) -> Tensor:
        """Return the mean absolute gradient over channels, (n, T, H, W) (Inkawhich et al. 2018).

        Where it is 0 at x, as for a distance to x itself, it is taken at a random point nearby.
        """
        if self.blind:
            return drawn(torch.rand, as_clip(x)[:, 0].shape, x, self.generator)
        with numbered(self.rows):
            gradient = judged_gradient(self._goal, x, check=not self.steady)[2]
        vanishes = gradient.flatten(1).abs().amax(1) == 0
        # `steady` always makes the second pass, as other processes may need it
        if self.steady or vanishes.any():
            noise = drawn(torch.rand, x.shape, x, self.generator)
            with numbered(self.rows):
                nearby = (x + 0.01 * (2 * noise - 1)).clamp(0, 1)
                near_gradient = judged_gradient(self._goal, nearby, check=not self.steady)[2]
            wide = vanishes.view(-1, *[1] * (x.ndim - 1))
            gradient = torch.where(wide, near_gradient, gradient)
        return as_clip(gradient).abs().mean(1)

    @staticmethod
    def _at(loss: Loss, rows: Tensor) -> Loss:
        """Return the loss of some of the samples; other callables are used as they are."""
        return loss.at(rows) if isinstance(loss, Misclassify) else loss


def judged(loss: Loss, x: Tensor, *, check: bool = True) -> tuple[Tensor, Tensor]:
    """Return loss (B,) and level (B,) of any loss, as `Misclassify.judge` does.

    Args:
        loss: (B, ...) -> (B,). Without levels, all levels are 0.
        x: the clips.
        check: check the logits of a classifier.

    Raises:
        ValueError: the loss is not one number per sample.
    """
    level: Tensor | None = None
    if isinstance(loss, Misclassify):
        value, level = loss.judge(x, check=check)
    else:
        value = called(loss, x, "loss")
    if value.shape != (len(x),):
        raise ValueError(
            f"the loss must be one number per sample, (B,); got {tuple(value.shape)} for B={len(x)}"
        )
    if level is None:
        level = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return value, level


def judged_gradient(loss: Loss, x: Tensor, *, check: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss (B,), level (B,), and the gradient of the summed loss, shaped as x.

    No gradient of a parameter is computed.

    Args:
        loss: (B, ...) -> (B,).
        x: the clips.
        check: refuse NaN, which makes a GPU wait.

    Raises:
        ValueError: the loss is no function of x, or torch.inference_mode is on. As `BadSamples`,
            with check: a loss is NaN, or a gradient NaN or infinite.
    """
    require_gradients()
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value, level = judged(loss, x, check=check)
        gradient: Tensor | None = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
    if gradient is None:
        raise ValueError(NO_GRADIENT)
    if check and len(x):
        # the extremes show NaN and infinity without a tensor of flags
        extremes = torch.stack(gradient.aminmax())
        if value.isnan().any() | ~torch.isfinite(extremes).all():
            not_finite = value.isnan() | ~torch.isfinite(gradient).flatten(1).all(1)
            samples = not_finite.nonzero().flatten().tolist()
            raise BadSamples(
                samples,
                "the gradient of samples {} is NaN or infinite; their loss is "
                f"{value[samples].tolist()}",
            )
    return value.detach(), level, gradient


def require_gradients() -> None:
    """Raise ValueError inside torch.inference_mode, where nothing has a gradient."""
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "torch.inference_mode: white-box attacks need gradients; leave it, "
            "torch.no_grad does no harm"
        )
