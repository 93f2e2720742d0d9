"""A loss becomes a perturbation. Usable alone, on any model: nothing here imports the rest of the package.

    from vidrobust.attacks import ThreatModel, contains, pgd

    threat = ThreatModel("linf", eps=4 / 255)
    x_adv = pgd(lambda v: F.cross_entropy(model(v), y, reduction="none"), x, threat)
    assert contains(threat, x, x_adv).all()

x is (B, C, T, H, W) in [0, 1] (an image is T = 1; (B, C, H, W) works as well) and the model is in eval mode.
"""

from vidrobust.attacks.gradient import Loss, fgsm, pgd
from vidrobust.attacks.threat import ThreatModel, contains, measure

__all__ = ["ATTACKS", "Loss", "ThreatModel", "contains", "fgsm", "measure", "pgd"]

# name -> attack(loss, x, threat, ...) -> x_adv
ATTACKS = {"fgsm": fgsm, "pgd": pgd}
