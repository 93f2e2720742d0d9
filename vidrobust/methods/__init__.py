"""Views become a loss: a method is a module, `method(views, ids, labels) -> {"loss": (B,), ...}`."""

from collections.abc import Callable

from vidrobust import config
from vidrobust.errors import lookup
from vidrobust.methods.adversarial import CLAE
from vidrobust.methods.info_nce import info_nce, nt_xent
from vidrobust.methods.method import Method
from vidrobust.methods.simclr import SimCLR
from vidrobust.methods.supervised import Supervised
from vidrobust.models import build_model

__all__ = ["CLAE", "METHODS", "Method", "SimCLR", "Supervised", "build_method", "info_nce", "nt_xent"]


def _simclr(cfg: config.Config, classes: int) -> SimCLR:
    adversary = cfg.method.adversary
    if adversary.name == "none":
        return SimCLR(build_model(cfg.model, "projector"), cfg.method.temperature)
    model = build_model(cfg.model, "projector", branches=adversary.momentum)
    return SimCLR(model, cfg.method.temperature, CLAE(adversary.eps, adversary.alpha))


def _supervised(cfg: config.Config, classes: int) -> Supervised:
    return Supervised(build_model(cfg.model, "linear", classes))


METHODS: dict[str, Callable[[config.Config, int], Method]] = {"simclr": _simclr, "supervised": _supervised}


def build_method(cfg: config.Config, classes: int) -> Method:
    """The configured method around a model with fresh weights; classes: K of the data set."""
    return lookup(METHODS, cfg.method.name, "method.name")(cfg, classes)
