"""MethodSpec and AdversarySpec: the entries of METHODS and ADVERSARIES.

Each method and adversary has its entry in its own file. Whatever the package says of a method is
derived from its entry: how it is built, which options it uses, what it refuses, what a resume may
not change, what a step costs, and its row in docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vidrobust import config
from vidrobust.losses.air import Invariance
from vidrobust.methods.adversarial.adversary import Adversary
from vidrobust.methods.adversarial.view_batch import Pairing
from vidrobust.methods.base import Method
from vidrobust.methods.false_negatives.removal import Removal
from vidrobust.models import Model
from vidrobust.models.momentum import MomentumEncoder


@dataclass(frozen=True)
class Cost:
    """Passes of the model in a training step, over one clip per video.

    forward: passes without gradient, of one batch each. attack: passes of one step of the attack,
    forward and backward to the input, on `together` batches at once. learned: passes forward and
    backward to the weights, each of so many batches at once, which share batch statistics.
    train_mode: the attack's norms use the statistics of the batch.
    """

    forward: int = 0
    attack: int = 0
    together: int = 1
    learned: tuple[int, ...] = (1,)
    train_mode: bool = False

    def passes(self, steps: int) -> tuple[int, int, int]:
        """Return the passes of a whole step: forward, backward, and backward to the input alone.

        steps: of the attack.
        """
        to_input = self.attack * self.together * steps
        learned = sum(self.learned)
        return self.forward + to_input + learned, to_input + learned, to_input


@dataclass(frozen=True)
class Parts:
    """What the configuration gives to a method that is built (`methods/build.py`).

    options: `method.*`. classes: of the data set. batch_size: over all ranks. dim: of embeddings.
    model: (head, classes of a linear head) -> a model with fresh weights and the norm branches that
    the adversary needs. momentum: model -> its momentum encoder. removal: (negatives of an anchor)
    -> removal of false negatives, or None. attack: names of norm branches -> the adversary, or
    None; no names: the branches that the model has. pairing: () -> the adversary's, or None.
    uses_original: whether views include the clip before augmentation.
    """

    options: config.MethodConfig
    classes: int
    batch_size: int
    dim: int
    model: Callable[..., Model]
    momentum: Callable[[Model], MomentumEncoder]
    removal: Callable[[int], Removal | None]
    attack: Callable[..., Adversary | None]
    pairing: Callable[[], Pairing | None]
    uses_original: bool


@dataclass(frozen=True)
class MethodSpec:
    """A method: an entry of METHODS.

    build: `Parts` -> the method. help: a phrase for tables. options: keys of `method.*` that it
    uses, besides `name` and `norm`. adversaries: names of ADVERSARIES that it takes. needs_labels:
    whether every video must have a label. refuses: "false_negatives" or "negatives", option groups
    that it does not take, and why. fixed: keys of `method.*` that decide what is in a checkpoint,
    so that a resume may not change them. cost: of a step without an adversary.
    """

    build: Callable[[Parts], Method]
    help: str
    cost: Cost
    options: frozenset[str] = frozenset()
    adversaries: tuple[str, ...] = ()
    needs_labels: Callable[[config.MethodConfig], bool] = lambda options: False
    refuses: Mapping[str, str] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()


_ATTACK = frozenset({"threats", "combine", "selector", "steps", "step", "start", "schedule"})


@dataclass(frozen=True)
class AdversarySpec:
    """An adversary: an entry of ADVERSARIES. Its values are defaults of `method.adversary.*`.

    help: a phrase for tables. costs: of a step, by `method.name`; "": of all others. variants:
    options in words -> the cost with them. build: in
    place of the method's own. options: keys of `method.adversary.*` that it uses besides those of
    `attack`, the keys that its attack uses. pairing: (options, AIR's loss or None) -> how a
    contrastive method pairs clean and adversarial views; None: the method does it itself. threat,
    steps, step (a fraction of eps; None: 2.5 / steps), random_start: of the attack. train_mode: the
    attack's norms use the statistics of the batch. branches: options -> names of the norm branches
    of adversarial views; () for the clean one. branched_head: the norms of the projector have
    branches too. momentum: of the statistics of such branches. two_clips: it needs two clips per
    video. uses_original: options -> whether views include the clip before augmentation. measured:
    the eval.branch of its paper's numbers; "": any. fixed: keys of `method.adversary.*` that a
    resume may not change. refusal: `method.*` -> why these options do not go together, or "".
    """

    help: str
    costs: Mapping[str, Cost]
    variants: Mapping[str, Cost] = field(default_factory=dict)
    build: Callable[[Parts], Method] | None = None
    options: frozenset[str] = frozenset()
    attack: frozenset[str] = _ATTACK
    pairing: Callable[[config.AdversaryConfig, Invariance | None], Pairing] | None = None
    threat: str = "linf-8/255"
    steps: int = 1
    step: float | None = None
    random_start: bool = False
    train_mode: bool = False
    branches: Callable[[config.AdversaryConfig], tuple[str, ...]] = lambda options: ()
    branched_head: bool = True
    momentum: float = 0.1
    two_clips: bool = False
    uses_original: Callable[[config.AdversaryConfig], bool] = lambda options: False
    measured: str = ""
    fixed: frozenset[str] = frozenset()
    refusal: Callable[[config.MethodConfig], str] = lambda options: ""

    def cost(self, method: str) -> Cost:
        """Return the cost of a step with a method."""
        return self.costs.get(method, self.costs[""])


def branch_per_threat(options: config.AdversaryConfig) -> tuple[str, ...]:
    """Return the names of norm branches: one, or one per threat with combine=branches."""
    if options.combine == "branches":
        numbers = (0, *range(2, len(options.threats) + 1))
        return tuple(f"adv{number or ''}" for number in numbers)
    return ("adv",)


def branch_per_threat_only(options: config.AdversaryConfig) -> tuple[str, ...]:
    """Return the same names for an adversary whose views share the clean norms otherwise."""
    return branch_per_threat(options) if options.combine == "branches" else ()
