"""Views become a loss: a method is a module, `method(views, ids, labels) -> {"loss": (B,), ...}`."""

from vidrobust.methods.adversarial import CLAE
from vidrobust.methods.build import METHODS, SUPERVISED, build_method, without_effect
from vidrobust.methods.byol import BYOL
from vidrobust.methods.clusters import k_means
from vidrobust.methods.false_negatives import RULES, Pairs, detect
from vidrobust.methods.info_nce import info_nce, nt_xent
from vidrobust.methods.instdisc import InstDisc, plain, uel
from vidrobust.methods.method import Method
from vidrobust.methods.moco import MoCo
from vidrobust.methods.momentum import MomentumEncoder
from vidrobust.methods.removal import Masks, Removal
from vidrobust.methods.simclr import SimCLR
from vidrobust.methods.supcon import SupCon
from vidrobust.methods.supervised import Supervised

__all__ = [
    "BYOL", "CLAE", "METHODS", "RULES", "SUPERVISED", "InstDisc", "Masks", "Method", "MoCo", "MomentumEncoder",
    "Pairs", "Removal", "SimCLR", "SupCon", "Supervised", "build_method", "detect", "info_nce", "k_means", "nt_xent",
    "plain", "uel", "without_effect",
]  # fmt: skip
