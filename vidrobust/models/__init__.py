"""Backbones, heads and branch norm.

`build_backbone(name)` returns a Backbone: clips (B, C, T, H, W) in [0, 1] -> features (B, dim). It
normalises the clips itself.
"""

from vidrobust.models.attentive_head import AttentiveHead
from vidrobust.models.backbone import Backbone
from vidrobust.models.branch_norm import add_branches, branch_names, single_branch_state, use_branch
from vidrobust.models.build import BACKBONES, build_backbone, build_model, configured_backbone
from vidrobust.models.heads import linear, normed_mlp, outputs_of, projector
from vidrobust.models.model import Model

__all__ = [
    "BACKBONES",
    "AttentiveHead",
    "Backbone",
    "Model",
    "add_branches",
    "branch_names",
    "build_backbone",
    "build_model",
    "configured_backbone",
    "linear",
    "normed_mlp",
    "outputs_of",
    "projector",
    "single_branch_state",
    "use_branch",
]
