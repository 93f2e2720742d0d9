"""Parameter groups, optimizers, and schedules as pure functions of the step."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from vidrobust import config
from vidrobust.errors import lookup


class LARS(Optimizer):
    """SGD with momentum whose step is scaled layer by layer (You, Gitman, Ginsburg 2017, algorithm 1).

    A layer's rate is lr * trust * |w| / (|g| + weight_decay * |w|). Groups with `adapt` False (norms and biases)
    take plain SGD steps.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad + group["weight_decay"] * p
                if group["adapt"]:
                    size, slope = p.norm(), p.grad.norm()
                    ratio = group["trust"] * size / (slope + group["weight_decay"] * size)
                    update = update * torch.where((size > 0) & (slope > 0), ratio, torch.ones_like(ratio))
                if "velocity" not in self.state[p]:
                    self.state[p]["velocity"] = torch.zeros_like(p)
                velocity = self.state[p]["velocity"].mul_(group["momentum"]).add_(update)
                p.sub_(group["lr"] * velocity)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], config.Optim], Optimizer]] = {
    "sgd": lambda groups, cfg: SGD(groups, lr=cfg.lr, momentum=cfg.momentum),
    "adamw": lambda groups, cfg: AdamW(groups, lr=cfg.lr),
    "lars": lambda groups, cfg: LARS(groups, lr=cfg.lr, momentum=cfg.momentum),
}

# share of the schedule done (0 to 1) -> share of the peak rate
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "constant": lambda done: 1.0,
}


def build_optimizer(model: nn.Module, cfg: config.Optim) -> Optimizer:
    """The configured optimizer over two groups: weights, and norms and biases, which never decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    weights, rest = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": cfg.weight_decay}]
    groups.append({"params": rest, "weight_decay": 0.0})
    if cfg.name == "lars":
        groups[1]["adapt"] = False
    return lookup(OPTIMIZERS, cfg.name, "optim.name")(groups, cfg)


def learning_rate(step: int, total: int, cfg: config.Optim) -> float:
    """The rate of step 0..total-1: a linear climb over the `warmup` share, then the schedule down to its end."""
    schedule = lookup(SCHEDULES, cfg.schedule, "optim.schedule")
    climb = int(cfg.warmup * total)
    if step < climb:
        return cfg.lr * (step + 1) / climb
    return cfg.lr * schedule((step - climb) / max(1, total - climb))
