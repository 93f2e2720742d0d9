"""Keep each sample's best iterate, and drop samples that are finished."""

import warnings

import torch
from torch import Tensor

from vidrobust.attacks.arguments import drawn
from vidrobust.attacks.ball import Ball, make_ball
from vidrobust.attacks.losses import Loss, Misclassify
from vidrobust.attacks.outputs import BadSamples, called, numbered
from vidrobust.attacks.threat import ThreatModel, as_clip, check_input, require_threat


class Search:
    """A run of an attack over a batch.

    `begin` opens a start over the samples that are not finished, `gradient` and `look` evaluate a
    delta of them and keep what is best, `drop` leaves out those that have finished meanwhile,
    `result` is each sample's best clip. Better is a higher level (`Misclassify.judge`: wrong beats
    right), then a higher loss. A loss that is any other callable has no levels, and no sample of it
    finishes.
    """

    ball: Ball
    rows: Tensor  # which samples of the batch `ball` and the deltas are of
    # (n,) whether the last evaluation found them wrong: level above 0, or without levels a loss
    # above 0
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
        """blind: a place that a gradient would choose is drawn: for black-box attacks. steady: as
        many passes whatever the clips are, for losses that several processes compute together.
        """
        check_input(x)
        require_threat(threat)
        if isinstance(loss, Misclassify):
            loss.require_labels(x)
        if not isinstance(generator, torch.Generator | None):
            raise TypeError(
                f"generator={generator!r}: a torch.Generator; torch.Generator().manual_seed(0)"
                " makes one"
            )
        # a clone of an inference tensor may ask for gradients, the tensor itself may not
        self.x = x.clone() if x.is_inference() else x.detach()
        self.threat = threat
        self.generator = generator
        self.blind = blind
        self.steady = steady
        self._loss, self._goal = loss, loss
        self.best = self.x.clone()
        self.value = torch.full((len(x),), -torch.inf, device=x.device)
        self.level = torch.full((len(x),), -1, device=x.device)
        self._lost = torch.zeros(
            len(x), dtype=torch.bool, device=x.device
        )  # whose loss or gradient was NaN

    def begin(self, loss: Loss | None = None) -> bool:
        """A new start: `ball` and `rows` of the unfinished samples; False when there are none, or
        nothing may move.

        loss: from here on another one, for attacks that go through several.
        """
        self._loss = loss or self._loss
        self.rows = (~self._done(self.level, self.value)).nonzero().flatten()
        if not len(self.rows) or self.threat.eps == 0:
            return False
        self._goal = self._at(self._loss, self.rows)
        self._finished, self._first = torch.zeros_like(self.rows, dtype=torch.bool), True
        x = self.x[self.rows]
        self.ball = make_ball(self.threat, x, lambda: self._saliency(x), self.generator)
        return True

    def place(self, where: Tensor) -> None:
        """Put the frames or the patch of the samples of the ball elsewhere."""
        self.ball = self.ball.moved_to(where)

    def gradient(self, delta: Tensor, *, keep: bool = True) -> tuple[Tensor, Tensor]:
        """(loss (n,), its gradient shaped as delta) of the n samples of the ball.

        Raises BadSamples when the first of a start is NaN. `result` raises it for a later one, as
        reading each number would make a GPU wait. keep=False: the deltas lie outside the budget, on
        the way to others.
        """
        x_adv = self.ball.apply(delta)
        with numbered(self.rows):
            value, level, gradient = judged_gradient(self._goal, x_adv, check=self._first)
        self._begun(gradient)
        # in Linf a step along NaN stands still, as its sign is 0: later losses do not show it
        self._lost[self.rows] |= value.isnan() | ~gradient.flatten(1).sum(1).isfinite()
        if keep:
            self._keep(x_adv, value, level)
        return value, self.ball.pull(gradient, delta)

    def _begun(self, gradient: Tensor) -> None:
        """Warn if an attack cannot move from where it begins; end a start's first evaluation."""
        if self._first and not gradient.any():
            warnings.warn(
                "the gradient is 0 for every sample where the attack begins: it cannot move from"
                " there. Begin at a random point (pgd does), or look for what masks gradients",
                stacklevel=5,
            )
        self._first = False

    def slope(self, delta: Tensor) -> Tensor:
        """The gradient alone, shaped as delta: nothing is kept, checked or told."""
        return self.ball.pull(
            judged_gradient(self._goal, self.ball.apply(delta), check=False)[2], delta
        )

    @torch.no_grad()
    def peek(self, delta: Tensor) -> Tensor:
        """The loss (n,) of a delta that may lie outside the budget: nothing of it is kept."""
        return judged(self._goal, self.ball.apply(delta), check=False)[0].float()

    @torch.no_grad()
    def look(self, delta: Tensor) -> Tensor:
        """The loss (n,), without its gradient."""
        x_adv = self.ball.apply(delta)
        with numbered(self.rows):
            value, level = judged(self._goal, x_adv, check=self._first)
        self._first = False
        if isinstance(self._goal, Misclassify):
            self._lost[self.rows] |= value.isnan()
        self._keep(x_adv, value, level)
        return value

    def drop(self, *state: Tensor) -> tuple[Tensor, ...]:
        """`state`, tensors of n rows, without the samples that were finished by the last
        evaluation.
        """
        if not isinstance(self._goal, Misclassify) or not self._finished.any():
            return state
        stay = (~self._finished).nonzero().flatten()
        self._finished = self._finished[stay]
        self.rows, self.ball, self._goal = (
            self.rows[stay],
            self.ball.at(stay),
            self._at(self._goal, stay),
        )
        return tuple(part[stay] for part in state)

    def result(self) -> Tensor:
        """Return each sample's best clip. Raises BadSamples where a loss or a gradient was NaN."""
        self.require_numbers()
        lost = torch.isneginf(self.value) & (self.level < 0)
        if self.threat.eps > 0 and lost.any():
            reason = "the loss of samples {} is NaN at every iterate"
            raise BadSamples(lost.nonzero().flatten().tolist(), reason)
        return self.best

    def require_numbers(self) -> None:
        """Raise BadSamples where a gradient was not finite, or a classifier's loss was NaN."""
        if self._lost.any():
            raise BadSamples(
                self._lost.nonzero().flatten().tolist(),
                "the loss or gradient of samples {} became NaN or infinite on the way",
            )

    def _keep(self, x_adv: Tensor, value: Tensor, level: Tensor) -> None:
        value = value.float()
        self._finished, self.broken = self._done(level, value), self._is_broken(value, level)
        before, most = self.level[self.rows], self.value[self.rows]
        better = ((level > before) & ~value.isnan()) | ((level == before) & (value > most))
        self.value[self.rows] = torch.where(better, value, most)
        self.level[self.rows] = torch.where(better, level, before)
        whole = len(self.rows) == len(self.x)
        if (
            whole and not better.is_cuda and better.all()
        ):  # nothing is copied; on a GPU the question costs more
            self.best = x_adv
            return
        so_far = self.best if whole else self.best[self.rows]
        best = torch.where(better.view(-1, *[1] * (x_adv.ndim - 1)), x_adv, so_far)
        if whole:
            self.best = best
        else:
            self.best[self.rows] = best

    def _is_broken(self, value: Tensor, level: Tensor) -> Tensor:
        return level > 0 if isinstance(self._goal, Misclassify) else value > 0

    def _done(self, level: Tensor, value: Tensor) -> Tensor:
        """Whether samples of these levels and losses are finished."""
        return level >= 2

    def _saliency(self, x: Tensor) -> Tensor:
        """The mean absolute gradient at x over channels, (n, T, H, W) (Inkawhich et al. 2018).

        Where it is 0, as that of a distance to x itself, it is asked for at a random point nearby.
        """
        if self.blind:
            return drawn(torch.rand, as_clip(x)[:, 0].shape, x, self.generator)
        with numbered(self.rows):
            found = judged_gradient(self._goal, x, check=not self.steady)[2]
        still = found.flatten(1).abs().amax(1) == 0
        if self.steady or still.any():
            noise = drawn(torch.rand, x.shape, x, self.generator)
            with numbered(self.rows):
                nearby = (x + 0.01 * (2 * noise - 1)).clamp(0, 1)
                near = judged_gradient(self._goal, nearby, check=not self.steady)[2]
            found = torch.where(still.view(-1, *[1] * (x.ndim - 1)), near, found)
        return as_clip(found).abs().mean(1)

    @staticmethod
    def _at(loss: Loss, rows: Tensor) -> Loss:
        return loss.at(rows) if isinstance(loss, Misclassify) else loss


def judged(loss: Loss, x: Tensor, *, check: bool = True) -> tuple[Tensor, Tensor]:
    """(loss (B,), level (B,)) of any loss; see `Misclassify.judge`."""
    level: Tensor | None = None
    if isinstance(loss, Misclassify):
        value, level = loss.judge(x, check=check)
    else:
        value = called(loss, x, "loss")
    if value.shape != (len(x),):
        raise ValueError(
            f"the loss must be one number a sample, (B,); got {tuple(value.shape)} for B={len(x)}"
        )
    return value, torch.zeros(len(x), dtype=torch.long, device=x.device) if level is None else level


def judged_gradient(loss: Loss, x: Tensor, *, check: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """(loss (B,), level (B,), gradient of the sum shaped as x). No parameter's gradient is
    computed.

    Raises ValueError for a loss that is no function of x and inside `torch.inference_mode`, and,
    with `check`, BadSamples for a loss of NaN and a gradient of NaN or infinity.
    """
    require_gradients()
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value, level = judged(loss, x, check=check)
        (gradient,) = (
            torch.autograd.grad(value.sum(), x, allow_unused=True)
            if value.requires_grad
            else (None,)
        )
    if gradient is None:
        raise ValueError(
            "the loss has no gradient at x: something on its way detaches or runs without one; "
            "square and nes do without gradients"
        )
    if (
        check
        and len(x)
        and (value.isnan().any() | ~torch.isfinite(torch.stack(gradient.aminmax())).all())
    ):
        lost = (
            (value.isnan() | ~torch.isfinite(gradient).flatten(1).all(1))
            .nonzero()
            .flatten()
            .tolist()
        )
        raise BadSamples(
            lost,
            "the gradient of samples {} is NaN or infinite; their loss is "
            f"{value[lost].tolist()}",
        )
    return value.detach(), level, gradient


def require_gradients() -> None:
    """Raise ValueError inside torch.inference_mode, where nothing has a gradient."""
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "torch.inference_mode: white-box attacks need gradients; leave it, "
            "torch.no_grad does no harm"
        )
