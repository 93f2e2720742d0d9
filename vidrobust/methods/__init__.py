"""Learning methods: `method(views, ids, labels) -> {"loss": (B,), ...}`."""

from vidrobust.losses.info_nce import info_nce, nt_xent
from vidrobust.methods.adversarial.acl import a2a, a2s, acl
from vidrobust.methods.adversarial.advcl import AdvCL, AdvCLSettings, high_pass
from vidrobust.methods.adversarial.adversarial_training import AdversarialTraining, Free, Trades
from vidrobust.methods.adversarial.adversary import AdversarialView, Adversary
from vidrobust.methods.adversarial.clae import clae, clae_published
from vidrobust.methods.adversarial.dynacl import dynacl
from vidrobust.methods.adversarial.eps_schedule import EpsSchedule
from vidrobust.methods.adversarial.rocl import rocl
from vidrobust.methods.adversarial.taro import TARO
from vidrobust.methods.adversarial.view_batch import ViewBatch
from vidrobust.methods.base import Method
from vidrobust.methods.build import build_adversary, build_method, build_negatives
from vidrobust.methods.byol import BYOL
from vidrobust.methods.distill import Distill
from vidrobust.methods.false_negatives.removal import FalseNegatives, Masks, Removal
from vidrobust.methods.false_negatives.rules import RULES, Pairs, RuleNeeds, detect
from vidrobust.methods.instance_discrimination import InstDisc, plain, uel
from vidrobust.methods.moco import MoCo, MoCoSettings
from vidrobust.methods.pseudo_labels import PseudoLabels, k_means
from vidrobust.methods.registry import (
    ADVERSARIES,
    METHODS,
    options_with_labels,
    require_branch,
    require_options,
    skips_weights,
    unmeasured,
    without_effect,
)
from vidrobust.methods.simclr import AdversarialSimCLR, LossSettings, SimCLR, SupCon, ViewSettings
from vidrobust.methods.supervised import Supervised
from vidrobust.models.momentum import MomentumEncoder

__all__ = [
    "ADVERSARIES",
    "BYOL",
    "METHODS",
    "RULES",
    "TARO",
    "AdvCL",
    "AdvCLSettings",
    "AdversarialSimCLR",
    "AdversarialTraining",
    "AdversarialView",
    "Adversary",
    "Distill",
    "EpsSchedule",
    "FalseNegatives",
    "Free",
    "InstDisc",
    "LossSettings",
    "Masks",
    "Method",
    "MoCo",
    "MoCoSettings",
    "MomentumEncoder",
    "Pairs",
    "PseudoLabels",
    "Removal",
    "RuleNeeds",
    "SimCLR",
    "SupCon",
    "Supervised",
    "Trades",
    "ViewBatch",
    "ViewSettings",
    "a2a",
    "a2s",
    "acl",
    "build_adversary",
    "build_method",
    "build_negatives",
    "clae",
    "clae_published",
    "detect",
    "dynacl",
    "high_pass",
    "info_nce",
    "k_means",
    "nt_xent",
    "options_with_labels",
    "plain",
    "require_branch",
    "require_options",
    "rocl",
    "skips_weights",
    "uel",
    "unmeasured",
    "without_effect",
]
