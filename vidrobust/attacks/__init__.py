"""Adversarial attacks on any model. Usable alone: imports nothing else of the package.

    from vidrobust.attacks import Misclassify, ThreatModel, contains, pgd

    threat = ThreatModel("linf", eps=4 / 255)
    x_adv = pgd(Misclassify(model, y), x, threat)
    assert contains(threat, x, x_adv).all()

x is (B, C, T, H, W) in [0, 1] (an image is T = 1; (B, C, H, W) works as well) and the model is in
eval mode. A loss is any callable x -> (B,); `Misclassify` is a classifier's.
"""

from vidrobust.attacks.apgd import apgd, apgd_t
from vidrobust.attacks.ball import Ball, make_ball, project
from vidrobust.attacks.bpda import BPDA
from vidrobust.attacks.costs import Cost, largest_cost
from vidrobust.attacks.feature_losses import (
    impersonate,
    leave_neighbors,
    own_loss,
    pull_toward,
    push_away,
)
from vidrobust.attacks.gradient import fgsm, mim, pgd
from vidrobust.attacks.losses import (
    SCORES,
    Loss,
    Misclassify,
    Predict,
    checked_logits,
    dlr_toward,
    eot,
    finite_logits,
    require_classes,
    require_logits,
    rounded,
    toward,
)
from vidrobust.attacks.minimum import cw, fab, fab_t, fmn
from vidrobust.attacks.outputs import BadSamples, as_tensor, called, checked_output, numbered
from vidrobust.attacks.passes import Passes
from vidrobust.attacks.query import geo_trap, nes
from vidrobust.attacks.reach import reachable_modules
from vidrobust.attacks.self_checks import self_checks, weak_white_box
from vidrobust.attacks.square import square
from vidrobust.attacks.suite import (
    ATTACKS,
    BLACK_BOX,
    MINIMUM_NORM,
    VERSIONS,
    Outcome,
    Step,
    attack_step,
    autoattack,
    rounds_away,
    suite_steps,
    worst_case,
)
from vidrobust.attacks.threat import ThreatModel, contains, measure, parse_threat
from vidrobust.attacks.universal import apply_universal, universal
from vidrobust.attacks.video import (
    flicker,
    frame_saliency,
    one_frame,
    roa,
    salt_and_pepper,
    sparse,
    temporal_translation,
)

__all__ = [
    "ATTACKS",
    "BLACK_BOX",
    "BPDA",
    "MINIMUM_NORM",
    "SCORES",
    "VERSIONS",
    "BadSamples",
    "Ball",
    "Cost",
    "Loss",
    "Misclassify",
    "Outcome",
    "Passes",
    "Predict",
    "Step",
    "ThreatModel",
    "apgd",
    "apgd_t",
    "apply_universal",
    "as_tensor",
    "attack_step",
    "autoattack",
    "called",
    "checked_logits",
    "checked_output",
    "contains",
    "cw",
    "dlr_toward",
    "eot",
    "fab",
    "fab_t",
    "fgsm",
    "finite_logits",
    "flicker",
    "fmn",
    "frame_saliency",
    "geo_trap",
    "impersonate",
    "largest_cost",
    "leave_neighbors",
    "make_ball",
    "measure",
    "mim",
    "nes",
    "numbered",
    "one_frame",
    "own_loss",
    "parse_threat",
    "pgd",
    "project",
    "pull_toward",
    "push_away",
    "reachable_modules",
    "require_classes",
    "require_logits",
    "roa",
    "rounded",
    "rounds_away",
    "salt_and_pepper",
    "self_checks",
    "sparse",
    "square",
    "suite_steps",
    "temporal_translation",
    "toward",
    "universal",
    "weak_white_box",
    "worst_case",
]
