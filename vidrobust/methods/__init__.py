"""Views become a loss: a method is a module, `method(views, ids, labels) -> {"loss": (B,), ...}`."""

from vidrobust.methods.advcl import AdvCL, high_pass
from vidrobust.methods.adversarial import Streams, a2a, a2s, acl, clae, clae_published, dynacl, rocl
from vidrobust.methods.adversarial_training import AdversarialTraining, Free, Trades
from vidrobust.methods.adversary import AdversarialView, Adversary
from vidrobust.methods.budget import Budget
from vidrobust.methods.build import METHODS, build_method
from vidrobust.methods.byol import BYOL
from vidrobust.methods.clusters import k_means
from vidrobust.methods.distill import Distill
from vidrobust.methods.false_negatives import RULES, Pairs, detect
from vidrobust.methods.info_nce import info_nce, nt_xent
from vidrobust.methods.instdisc import InstDisc, plain, uel
from vidrobust.methods.method import Method
from vidrobust.methods.moco import MoCo
from vidrobust.methods.momentum import MomentumEncoder
from vidrobust.methods.pseudo_labels import PseudoLabels
from vidrobust.methods.recipes import RECIPES, build_adversary, require_adversary, require_branch, unmeasured
from vidrobust.methods.removal import Masks, Removal
from vidrobust.methods.simclr import SimCLR
from vidrobust.methods.supcon import SupCon
from vidrobust.methods.supervised import Supervised
from vidrobust.methods.taro import TARO
from vidrobust.methods.uses import without_effect

__all__ = [
    "BYOL", "METHODS", "RECIPES", "RULES", "TARO", "AdvCL", "AdversarialTraining", "AdversarialView", "Adversary",
    "Budget", "Distill", "Free", "InstDisc", "Masks", "Method", "MoCo", "MomentumEncoder", "Pairs", "PseudoLabels",
    "Removal", "SimCLR", "Streams", "SupCon", "Supervised", "Trades", "a2a", "a2s", "acl", "build_adversary",
    "build_method", "clae", "clae_published", "detect", "dynacl", "high_pass", "info_nce", "k_means", "nt_xent",
    "plain", "require_adversary", "require_branch", "rocl", "uel", "unmeasured",
    "without_effect",
]  # fmt: skip
