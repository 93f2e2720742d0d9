"""Parameter groups, optimizers and learning-rate schedules."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from vidrobust import config
from vidrobust.models import Backbone
from vidrobust.training.layer_decay import rate_factors
from vidrobust.utils.errors import lookup


class LARS(Optimizer):
    """SGD with momentum whose step is scaled per layer (You et al. 2017, algorithm 1).

    The rate of a layer is lr * trust * |w| / (|g| + weight_decay * |w|). Groups with `adapt` False
    (norms and biases) take plain SGD steps. As in torch's SGD, lr is a factor of the velocity; in
    algorithm 1 it is a factor of the update that the velocity adds. Both are the same while lr is
    constant.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        """Set the options of all groups that do not set their own.

        Args:
            params: parameters or groups.
            lr: learning rate.
            momentum: fraction of the velocity that a step keeps.
            weight_decay: L2 penalty.
            trust: fraction of a layer's norm that a step may change at rate 1.
        """
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
        """Take a step; closures are not supported."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = p.grad + group["weight_decay"] * p
                if group["adapt"]:
                    weight_norm = p.norm()
                    gradient_norm = p.grad.norm()
                    decay = group["weight_decay"] * weight_norm
                    ratio = group["trust"] * weight_norm / (gradient_norm + decay)
                    # of weights or gradients that are all 0 there is no ratio
                    defined = (weight_norm > 0) & (gradient_norm > 0)
                    update = update * torch.where(defined, ratio, torch.ones_like(ratio))
                if "velocity" not in self.state[p]:
                    self.state[p]["velocity"] = torch.zeros_like(p)
                velocity = self.state[p]["velocity"].mul_(group["momentum"]).add_(update)
                p.sub_(group["lr"] * velocity)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], config.OptimConfig], Optimizer]] = {
    "sgd": lambda groups, cfg: SGD(groups, lr=cfg.lr, momentum=cfg.momentum),
    "adamw": lambda groups, cfg: AdamW(
        groups, lr=cfg.lr, betas=(cfg.betas[0], cfg.betas[1]), eps=cfg.eps
    ),
    "lars": lambda groups, cfg: LARS(groups, lr=cfg.lr, momentum=cfg.momentum),
}

# fraction of the schedule done (0 to 1) -> fraction of the peak rate
SCHEDULES: dict[str, Callable[[float, config.OptimConfig], float]] = {
    "cosine": lambda done, cfg: _above_final(0.5 * (1 + math.cos(math.pi * done)), cfg),
    "linear": lambda done, cfg: _above_final(1 - done, cfg),
    "constant": lambda done, cfg: 1.0,
    "step": lambda done, cfg: cfg.gamma ** sum(done >= each for each in cfg.milestones),
    "auto": lambda done, cfg: 1.0,  # times the factor of `auto_rate.AutoRate`
}


def _above_final(part: float, cfg: config.OptimConfig) -> float:
    """Return the fraction of the peak rate, of which `part` is above the final rate."""
    final = cfg.final_lr / cfg.lr
    return final + (1 - final) * part


def build_optimizer(
    model: nn.Module, cfg: config.OptimConfig, backbone: Backbone | None = None
) -> Optimizer:
    """Return the configured optimizer over two groups: weights, and norms and biases.

    The second group decays only with `cfg.decay_norms`, and LARS adapts its rate only without
    `cfg.lars_exclude`. With `cfg.fix_predictor` the parameters of a predictor are two more groups,
    whose rate `set_rate` does not change. With `cfg.layer_decay` each stage of the backbone has two
    groups of its own.

    Args:
        model: its parameters with gradient are optimised.
        cfg: `optim.*`.
        backbone: the part of the model whose rates decay by `cfg.layer_decay`.

    Raises:
        UserError: for an unknown optimizer, and for layer_decay of a backbone without stages.
    """
    fixed: list[nn.Parameter] = []
    scheduled: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            is_fixed = cfg.fix_predictor and name.startswith("predictor.")
            (fixed if is_fixed else scheduled).append(p)
    factors = rate_factors(backbone, cfg.layer_decay) if backbone and cfg.layer_decay < 1 else {}
    by_factor: dict[float, list[nn.Parameter]] = defaultdict(list)
    for p in scheduled:
        by_factor[factors.get(p, 1.0)].append(p)
    # one factor alone gives the two groups of earlier checkpoints
    groups = [
        {**group, "rate_factor": factor} if factors else group
        for factor, params in (by_factor or {1.0: scheduled}).items()
        for group in _groups(params, cfg)
    ]
    if fixed:
        groups += [{**group, "fixed": True} for group in _groups(fixed, cfg)]
    return lookup(OPTIMIZERS, cfg.name, "optim.name")(groups, cfg)


def _groups(params: Sequence[nn.Parameter], cfg: config.OptimConfig) -> list[dict[str, Any]]:
    """Return the groups of weights, and of norms and biases."""
    # weights of linear layers and convolutions are matrices; those of norms, and biases, vectors
    weights = [p for p in params if p.ndim > 1]
    norms_and_biases = [p for p in params if p.ndim <= 1]
    decay = cfg.weight_decay if cfg.decay_norms else 0.0
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": cfg.weight_decay},
        {"params": norms_and_biases, "weight_decay": decay},
    ]
    if cfg.name == "lars":
        groups[1]["adapt"] = not cfg.lars_exclude
    return groups


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of all groups that are not fixed, times their factors."""
    for group in optimizer.param_groups:
        if not group.get("fixed"):
            group["lr"] = rate * group.get("rate_factor", 1.0)


def learning_rate(step: int, total: int, cfg: config.OptimConfig, head_first: float = 0.0) -> float:
    """Return the rate of a step: a linear increase during the warm-up, then the schedule.

    Args:
        step: 0 to total - 1.
        total: steps of the run.
        cfg: the rates.
        head_first: fraction of the run in which the head is trained alone, at `cfg.head_lr` if that
            is not 0; the schedule then begins after it.

    Raises:
        UserError: for an unknown schedule.
    """
    schedule = lookup(SCHEDULES, cfg.schedule, "optim.schedule")
    # rounded up: the head is trained alone in steps with step / total < head_first
    head_steps = math.ceil(head_first * total) if cfg.head_lr else 0
    if step < head_steps:
        return cfg.head_lr
    step -= head_steps
    total -= head_steps
    warmup_steps = int(cfg.warmup * total)
    # the first step has a rate above 0, the last one of the warm-up the full rate
    if step < warmup_steps:
        return cfg.lr * (step + 1) / warmup_steps
    return cfg.lr * schedule((step - warmup_steps) / max(1, total - warmup_steps), cfg)
