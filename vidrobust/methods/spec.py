"""MethodSpec and AdversarySpec: the entries of the registry of methods.

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

    Attributes:
        forward: passes without gradient, of one batch each.
        attack: passes of one step of the attack, forward and backward to the input.
        together: batches in each pass of the attack.
        learned: batches in each pass forward and backward to the weights; the batches of a pass
            share their statistics.
        train_mode: the attack's norms use batch statistics.
    """

    forward: int = 0
    attack: int = 0
    together: int = 1
    learned: tuple[int, ...] = (1,)
    train_mode: bool = False

    def passes(self, steps: int) -> tuple[int, int, int]:
        """Return the passes of a whole step: forward, backward, and backward to the input only.

        Args:
            steps: of the attack.
        """
        to_input = self.attack * self.together * steps
        learned = sum(self.learned)
        return self.forward + to_input + learned, to_input + learned, to_input


@dataclass(frozen=True)
class Parts:
    """The parts that `methods/build.py` makes of the configuration, for the `build` of an entry.

    Attributes:
        options: `method.*`.
        classes: of the data set.
        batch_size: over all ranks.
        dim: of embeddings.
        model: (classes of a linear head) -> a model with fresh weights, the head of the method's
            entry, and the norm branches that the adversary needs.
        momentum: model -> its momentum encoder.
        removal: (negatives of an anchor) -> removal of false negatives, or None.
        attack: names of norm branches -> the adversary, or None; no names: the branches that the
            model has.
        pairing: () -> the adversary's, or None.
        uses_original: views include the clip before augmentation.
        key_encoder: a momentum encoder embeds the second of two views.
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
    key_encoder: bool


@dataclass(frozen=True)
class MethodSpec:
    """A method: an entry of the registry.

    Attributes:
        build: `Parts` -> the method.
        help: a phrase for tables.
        cost: of a step without an adversary.
        options: keys of `method.*` that it uses, in addition to `name` and `norm`.
        adversaries: names of ADVERSARIES that it takes.
        head: of its model, as `build_model` names it.
        takes: optional features that it takes: "selector" of norm branches, "a_info_nce".
        needs_labels: options -> every video must have a label.
        skips_weights: options -> some weights have no gradient in some steps.
        refuses: "false_negatives" or "negatives", option groups that it does not take, and why.
        fixed: keys of `method.*` that decide what is in a checkpoint, so that a resume may not
            change them.
    """

    build: Callable[[Parts], Method]
    help: str
    cost: Cost
    options: frozenset[str] = frozenset()
    adversaries: tuple[str, ...] = ()
    head: str = "projector"
    takes: frozenset[str] = frozenset()
    needs_labels: Callable[[config.MethodConfig], bool] = lambda options: False
    skips_weights: Callable[[config.MethodConfig], bool] = lambda options: False
    refuses: Mapping[str, str] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()


_ATTACK = frozenset({"threats", "combine", "selector", "steps", "step", "start", "schedule"})


@dataclass(frozen=True)
class AdversarySpec:
    """An adversary: an entry of the registry. Its values are defaults of `method.adversary.*`.

    Attributes:
        help: a phrase for tables.
        costs: of a step, by `method.name`; "": of all others.
        variants: options in words -> the cost with them.
        build: `Parts` -> the method, in place of the method's own `build`.
        options: keys of `method.adversary.*` that it uses, in addition to those of `attack`.
        attack: keys of `method.adversary.*` that its attack uses.
        uses: options -> keys of `method.*` that it uses.
        pairing: (options, AIR's loss or None) -> how a contrastive method pairs clean and
            adversarial views; None: the method does it itself.
        threat: budget of the attack.
        steps: of the attack.
        step: of the attack, a fraction of eps; None: 2.5 / steps.
        random_start: the attack begins at a random point of the budget.
        train_mode: the attack's norms use batch statistics.
        branches: options -> names of the norm branches of adversarial views; () for the clean one.
        branched_head: the norms of the projector have branches too.
        momentum: of the statistics of such branches.
        two_clips: it needs two clips per video.
        uses_original: options -> views include the clip before augmentation.
        key_encoder: options -> a momentum encoder embeds the second of two views, which
            `eval.average` measures.
        takes_air: options -> it has the two streams that AIR's terms compare.
        mixed: options -> its losses compare clean with adversarial views, as A-InfoNCE's asymmetry
            needs.
        skips_weights: options -> some weights have no gradient in some steps.
        measured: the `eval.branch` of its paper's numbers; "": any.
        measures: its loss depends on an accuracy that training measures.
        fixed: keys of `method.adversary.*` that a resume may not change.
        refusal: `method.*` -> why these options do not go together, or "".
    """

    help: str
    costs: Mapping[str, Cost]
    variants: Mapping[str, Cost] = field(default_factory=dict)
    build: Callable[[Parts], Method] | None = None
    options: frozenset[str] = frozenset()
    attack: frozenset[str] = _ATTACK
    uses: Callable[[config.AdversaryConfig], frozenset[str]] = lambda options: frozenset()
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
    key_encoder: Callable[[config.AdversaryConfig], bool] = lambda options: False
    takes_air: Callable[[config.AdversaryConfig], bool] = lambda options: False
    mixed: Callable[[config.AdversaryConfig], bool] = lambda options: False
    skips_weights: Callable[[config.AdversaryConfig], bool] = lambda options: False
    measured: str = ""
    measures: bool = False
    fixed: frozenset[str] = frozenset()
    refusal: Callable[[config.MethodConfig], str] = lambda options: ""

    def cost(self, method: str) -> Cost:
        """Return the cost of a step with a method."""
        return self.costs.get(method, self.costs[""])


def branch_per_threat(options: config.AdversaryConfig) -> tuple[str, ...]:
    """Return the names of norm branches: one, or one per threat with combine=branches."""
    if options.combine == "branches":
        # the first is "adv" in both cases, so that eval.branch=adv exists in every such model
        return ("adv", *(f"adv{number}" for number in range(2, len(options.threats) + 1)))
    return ("adv",)


def branch_per_threat_only(options: config.AdversaryConfig) -> tuple[str, ...]:
    """Return the same names for an adversary whose views share the clean norms otherwise."""
    return branch_per_threat(options) if options.combine == "branches" else ()
