"""AutoLoRa: clean clips train a branch of low rank, adversarial clips the network itself.

Xu, Zhang, Kankanhalli, ICLR 2024, "AutoLoRa: A Parameter-Free Automated Robust Fine-Tuning
Framework". Its learning rate is `training/auto_rate.py`.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call

from vidrobust import config
from vidrobust.losses.cosine import full_precision
from vidrobust.methods.adversarial.adversarial_training import (
    AdversarialTraining,
    divergence,
    shared_arguments,
)
from vidrobust.methods.adversarial.adversary import Adversary, with_selector
from vidrobust.methods.adversarial.view_batch import average, through
from vidrobust.methods.pseudo_labels import PseudoLabels
from vidrobust.methods.soft_labels import LabelSettings
from vidrobust.methods.spec import AdversarySpec, Cost, Parts, branch_per_threat_only
from vidrobust.methods.supervised import label_settings_of
from vidrobust.models import Model
from vidrobust.models.low_rank_branch import LowRankBranch


class AutoLora(AdversarialTraining):
    """(1 - s) CE(f_branch(x), y) + s CE(f(x_adv), y) + scale s KL(f_branch(x) || f(x_adv)).

    f is the network, and f_branch the network with a branch of low rank added to its weights. s is
    the accuracy of f_branch on clean training clips, which training measures. The gradient of
    f_branch(x) reaches the branch and the head, that of f(x_adv) all weights but the branch. Only f
    is measured and kept: its state dict is that of any other method.

    In the paper s is the accuracy of f_branch. The released code measures f_branch with `--dualBN
    1` alone. With one set of norms its `eval_test_nat` does not pass the branch on, so that s is
    the accuracy of f.
    """

    accuracy: Tensor  # s, a scalar in [0, 1]

    def __init__(
        self,
        model: Model,
        adversary: Adversary,
        branch: LowRankBranch,
        pseudo: PseudoLabels | None = None,
        head_first: float = 0.0,
        *,
        label_settings: LabelSettings | None = None,
        scale: float = 6.0,
    ) -> None:
        """Set the parts of the method.

        Args:
            model: backbone and classifier.
            adversary: makes clips that raise the cross-entropy of the network without the branch.
            branch: of the model's backbone.
            pseudo: as in `Supervised`.
            head_first: as in `Supervised`.
            label_settings: as in `Supervised`.
            scale: weight of the divergence where s is 1.
        """
        super().__init__(model, adversary, pseudo, head_first, label_settings=label_settings)
        self.branch = branch
        self.scale = scale
        self.register_buffer("accuracy", torch.zeros(()))

    def branch_logits(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of the network with the branch, for clips (B, C, T, H, W)."""
        weights = self.branch(self.model.backbone)
        replaced = {f"backbone.{key}": value for key, value in weights.items()}
        logits: Tensor = functional_call(self.model, replaced, (x,))
        return logits

    def network_to_measure(self) -> Callable[[Tensor], Tensor]:
        """Return the network with the branch, whose accuracy weighs the terms of the loss."""
        return self.branch_logits

    def record_accuracy(self, accuracy: float) -> None:
        """Set the weights of the loss by an accuracy in [0, 1]."""
        self.accuracy.fill_(accuracy)

    def report(self, last: bool = False) -> dict[str, float]:
        """Return numbers of the epoch that has ended, with the last accuracy of the branch."""
        return super().report(last) | {"branch_accuracy": float(self.accuracy)}

    def losses(self, x: Tensor, labels: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its parts for the log}.

        Args:
            x: (B, C, T, H, W) in [0, 1].
            labels: classes (B,), -1 for none, or distributions (B, K) of mixed clips.
            progress: fraction of training done.
        """

        def loss(v: Tensor) -> Tensor:
            return self.loss_of(self.model(v), labels)

        adv_views = self.adversary.views(self.model, lambda model: loss, x, progress)
        # clean clips first, as in the released code: both passes update the norms' statistics
        logits = full_precision(self.branch_logits(x))
        adv_logits = [full_precision(through(self.model, v, self.model)) for v in adv_views]
        clean = self.loss_of(logits, labels)
        adv = average([self.loss_of(each, labels) for each in adv_logits])
        # gradient reaches both predictions
        apart = average([divergence(logits, each) for each in adv_logits])
        s = self.accuracy
        parts = {
            "loss": (1 - s) * clean + s * adv + self.scale * s * apart,
            "loss_clean": clean,
            "loss_adv": adv,
            "loss_divergence": apart,
        }
        self.adversary.budget.record(adv)
        return with_selector(self.model, x, adv_views, parts)


def _build(parts: Parts) -> AutoLora:
    options = parts.options
    model, adversary, pseudo, head_first = shared_arguments(parts)
    return AutoLora(
        model,
        adversary,
        LowRankBranch(model.backbone, options.adversary.rank),
        pseudo,
        head_first,
        label_settings=label_settings_of(options),
        scale=options.adversary.scale,
    )


def _refusal(options: config.MethodConfig) -> str:
    if options.freeze:
        return (
            "method.freeze=true: autolora trains a branch of the backbone; set false, or"
            " method.adversary.name=pgd with optim.schedule=auto"
        )
    return ""


SPEC = AdversarySpec(
    help="AutoLoRa: clean clips train a branch of low rank",
    costs={"": Cost(attack=1, learned=(1, 1))},
    build=_build,
    options=frozenset({"rank", "scale"}),
    # 10 steps of 2/255 within 8/255, from the clip: the released code adds 0.001 of normal noise
    steps=10,
    step=0.25,
    branches=branch_per_threat_only,
    # clean clips do not train the norm weights of the clean branch
    skips_weights=lambda options: options.combine == "branches",
    measured="adv",
    measures=True,
    fixed=frozenset({"rank"}),
    refusal=_refusal,
)
