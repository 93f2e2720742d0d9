"""Parameter groups, optimizers and learning-rate schedules."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from vidrobust import config
from vidrobust.utils.errors import lookup


class LARS(Optimizer):
    """SGD with momentum whose step is scaled layer by layer (You, Gitman, Ginsburg 2017, algorithm
    1).

    A layer's rate is lr * trust * |w| / (|g| + weight_decay * |w|). Groups with `adapt` False
    (norms and biases) take plain SGD steps.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "adapt": True,
        }
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
                    update = update * torch.where(
                        (size > 0) & (slope > 0), ratio, torch.ones_like(ratio)
                    )
                if "velocity" not in self.state[p]:
                    self.state[p]["velocity"] = torch.zeros_like(p)
                velocity = self.state[p]["velocity"].mul_(group["momentum"]).add_(update)
                p.sub_(group["lr"] * velocity)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], config.OptimConfig], Optimizer]] = {
    "sgd": lambda groups, cfg: SGD(groups, lr=cfg.lr, momentum=cfg.momentum),
    "adamw": lambda groups, cfg: AdamW(groups, lr=cfg.lr),
    "lars": lambda groups, cfg: LARS(groups, lr=cfg.lr, momentum=cfg.momentum),
}

# share of the schedule done (0 to 1) -> share of the peak rate
SCHEDULES: dict[str, Callable[[float, config.OptimConfig], float]] = {
    "cosine": lambda done, cfg: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done, cfg: 1 - done,
    "constant": lambda done, cfg: 1.0,
    "step": lambda done, cfg: cfg.gamma ** sum(done >= share for share in cfg.milestones),
}


def build_optimizer(model: nn.Module, cfg: config.OptimConfig) -> Optimizer:
    """Return the configured optimizer over two groups: weights, and norms and biases.

    The second group decays only with `cfg.decay_norms`, and LARS adapts its rate only without
    `cfg.lars_exclude`. With `cfg.fix_predictor` those of a predictor are two more groups, whose
    rate `set_rate` leaves alone.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    fixed = [p for name, p in trained if cfg.fix_predictor and name.startswith("predictor.")]
    moving = [p for name, p in trained if not (cfg.fix_predictor and name.startswith("predictor."))]
    groups = [*_groups(moving, cfg), *({**group, "fixed": True} for group in _groups(fixed, cfg))]
    return lookup(OPTIMIZERS, cfg.name, "optim.name")(groups if fixed else groups[:2], cfg)


def _groups(params: Sequence[nn.Parameter], cfg: config.OptimConfig) -> list[dict[str, Any]]:
    """Return the groups of weights, and of norms and biases."""
    weights, rest = [p for p in params if p.ndim > 1], [p for p in params if p.ndim <= 1]
    decay = cfg.weight_decay if cfg.decay_norms else 0.0
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": cfg.weight_decay}]
    groups.append({"params": rest, "weight_decay": decay})
    if cfg.name == "lars":
        groups[1]["adapt"] = not cfg.lars_exclude
    return groups


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give all groups a learning rate, but those that are fixed."""
    for group in optimizer.param_groups:
        if not group.get("fixed"):
            group["lr"] = rate


def learning_rate(step: int, total: int, cfg: config.OptimConfig, head_first: float = 0.0) -> float:
    """Return the rate of step 0 to total - 1: a linear climb over the `warmup` share, then the
    schedule.

    Args:
        step: of the run.
        total: steps of the run.
        cfg: the rates.
        head_first: the share of the run in which the head is trained alone, at `cfg.head_lr` where
            that is not 0; the schedule then begins behind it.
    """
    schedule = lookup(SCHEDULES, cfg.schedule, "optim.schedule")
    alone = math.ceil(head_first * total) if cfg.head_lr else 0
    if step < alone:
        return cfg.head_lr
    step, total = step - alone, total - alone
    climb = int(cfg.warmup * total)
    if step < climb:
        return cfg.lr * (step + 1) / climb
    return cfg.lr * schedule((step - climb) / max(1, total - climb), cfg)
