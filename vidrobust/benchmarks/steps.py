"""Time a training step of each method, compared with the passes it needs.

The floor is the same forward and backward passes through the same model, without a loss worth the
name.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from vidrobust import config
from vidrobust.benchmarks.nt_xent import broadcast_nt_xent
from vidrobust.methods.adversarial.advcl import AdvCL
from vidrobust.methods.adversarial.adversary import in_mode
from vidrobust.methods.base import Method
from vidrobust.methods.build import build_method
from vidrobust.methods.registry import ADVERSARIES, METHODS, steps_of
from vidrobust.methods.spec import Cost
from vidrobust.models import Model, configured_backbone

Step = Callable[[], Tensor]  # -> a loss to go back from


# method.name, method.adversary.name of the steps that are timed unless others are asked for
TIMED: tuple[tuple[str, str], ...] = (
    ("simclr", "none"),
    *(("simclr", name) for name in ("clae", "rocl", "acl", "dynacl", "advcl")),
    ("simsiam", "taro"),
    ("distill", "deacl"),
    *(("supervised", name) for name in ("pgd", "trades", "fast")),
)


@dataclass
class StepTiming:
    """Of one way to make a step: seconds of each round, and peak memory in GiB (GPUs; else 0)."""

    method: str
    kind: str  # "vidrobust", "floor" or "public code"
    seconds: list[float] = field(default_factory=list)
    memory_gb: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def cost_of(cfg: config.Config, name: str, adversary: str) -> Cost:
    """Return the passes of a step with all steps of the attack.

    Raises ValueError for options whose passes are others.
    """
    wanted = cfg.method.adversary
    cost = METHODS[name].cost if adversary == "none" else ADVERSARIES[adversary].cost(name)
    plain = wanted.schedule == "constant" and not wanted.selector and not wanted.faithful
    if len(wanted.threats) > 1 or not plain or cfg.method.clips_per_video != 2:
        raise ValueError(
            "a floor is that of one threat of a constant eps and two clips, without a selector, not"
            " faithful"
        )
    steps = 0 if adversary == "none" else steps_of(replace(wanted, name=adversary))
    anchor = int(
        adversary == "clae" and steps > 1
    )  # which is one pass with the attack's only one else
    return replace(cost, attack=cost.attack * steps, forward=cost.forward + anchor)


def configured(cfg: config.Config, name: str, adversary: str, device: torch.device) -> Method:
    """The method by name, with the rest of the configuration; a fresh trunk is its teacher where it
    has one.
    """
    own = replace(cfg.method, name=name, adversary=replace(cfg.method.adversary, name=adversary))
    method = build_method(replace(cfg, method=own), 10)
    if method.wants_teacher:
        method.set_teacher(configured_backbone(cfg.model))
    method = method.to(device).train()
    if isinstance(method, AdvCL):
        method.pseudo.labels = torch.zeros(
            10**4, len(method.pseudo.counts), dtype=torch.long, device=device
        )
    return method


def floor_step(model: Model, clips: Tensor, cost: Cost, step: float = 0.01) -> Tensor:
    """The passes of `cost` on clips (B, C, T, H, W) and nothing else -> a number made of all that
    is learned.
    """
    for _ in range(cost.forward):
        with torch.no_grad(), in_mode(model, False):
            model(clips)
    moved = torch.cat([clips] * cost.together) if cost.attack else clips
    with in_mode(model, cost.train_mode):
        for _ in range(cost.attack):
            v = moved.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(model(v).float().sum(), v)
            moved = torch.add(v.detach(), gradient.sign(), alpha=step).clamp_(0, 1)
    batches = [torch.cat([clips] * count) for count in cost.learned]
    return torch.stack([model(batch).float().square().mean() for batch in batches]).sum()


def public_clae(model: Model, x1: Tensor, x2: Tensor, temperature: float, eps: float) -> Tensor:
    """CLAE's step as its code has it: the attack goes back to the weights as well, forgets its
    embeddings, and similarities are made by broadcasting (METHODS section 2.1; both branches are
    the model's own norms here).
    """
    with model.use_branch("adv"):
        za, tilde = model(x1), x1.clone().requires_grad_(True)
        broadcast_nt_xent(torch.cat([za, model(tilde)]), temperature).backward()
        assert tilde.grad is not None
        x_adv = x1 + eps * tilde.grad.sign()
    model.zero_grad()
    z1, z2 = model(x1), model(x2)
    with model.use_branch("adv"):
        z_adv = model(x_adv)
    return broadcast_nt_xent(torch.cat([z1, z2]), temperature) + broadcast_nt_xent(
        torch.cat([z1, z_adv]), temperature
    )


def public_rocl(
    model: Model, x1: Tensor, x2: Tensor, temperature: float, eps: float, steps: int = 7
) -> Tensor:
    """RoCL's step so: every step of the attack embeds the other view again and goes back to the
    weights.
    """
    x_adv = (x1 + eps * (2 * torch.rand_like(x1) - 1)).clamp(0, 1)
    with in_mode(model, False):
        for _ in range(steps):
            v = x_adv.detach().requires_grad_(True)
            broadcast_nt_xent(model(torch.cat([v, x2])), temperature).backward()
            assert v.grad is not None
            x_adv = torch.max(
                torch.min(v.detach() + 0.223 * eps * v.grad.sign(), x1 + eps), x1 - eps
            ).clamp(0, 1)
    model.zero_grad()
    second = broadcast_nt_xent(model(torch.cat([x_adv, x2])), temperature)
    z1, z2, z_adv = model(torch.cat([x1, x2, x_adv])).chunk(3)
    pairs = [
        broadcast_nt_xent(torch.cat(pair), temperature)
        for pair in ((z1, z2), (z1, z_adv), (z2, z_adv))
    ]
    return 2 * torch.stack(pairs).mean() + second / 256


def measure_steps(
    cfg: config.Config,
    names: list[tuple[str, str]],
    batch: int,
    rounds: int,
    device: torch.device,
    *,
    amp: bool = False,
    arrange: Callable[[Method], None] = lambda method: None,
) -> list[StepTiming]:
    """Each method's whole step with SGD, its floor, and public code where there is any, in turn;
    the first round warms.

    Every way has its own model with the same weights, and the same clips. arrange: done to each
    model. Raises as `cost_of` does.
    """
    shape = (batch, 3, 3, cfg.data.frames, cfg.data.size, cfg.data.size)
    views = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    ids, labels = torch.arange(batch, device=device), torch.arange(batch, device=device) % 10
    ways: list[tuple[StepTiming, nn.Module, Step]] = []
    for name, adversary in names:
        title = name if adversary == "none" else adversary
        made = [configured(cfg, name, adversary, device) for _ in range(3)]
        for other in made:
            arrange(other)
        for other in made[1:]:
            other.load_state_dict(made[0].state_dict())
        ways.append((StepTiming(title, "vidrobust"), made[0], _own(made[0], views, ids, labels)))
        cost = cost_of(cfg, name, adversary)
        ways.append((StepTiming(title, "floor"), made[1], _floor(made[1], views, cost)))
        if adversary in ("clae", "rocl"):
            ways.append(
                (StepTiming(title, "public code"), made[2], _public(adversary, made[2], views, cfg))
            )
    steppers = [
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4)
        for _, model, _ in ways
    ]
    for number in range(rounds + 1):
        for (timing, _, step), optimizer in zip(ways, steppers, strict=True):
            seconds, memory = _timed(step, optimizer, device, amp)
            if number:
                timing.seconds.append(seconds)
                timing.memory_gb = max(timing.memory_gb, memory)
    return [timing for timing, _, _ in ways]


def _own(method: Method, views: Tensor, ids: Tensor, labels: Tensor) -> Step:
    return lambda: method(views[:, : method.views], ids, labels)["loss"].mean()


def _floor(method: Method, views: Tensor, cost: Cost) -> Step:
    clips = views[:, 0].contiguous()
    return lambda: floor_step(method.model, clips, cost)


def _public(adversary: str, method: Method, views: Tensor, cfg: config.Config) -> Step:
    x1, x2, t = views[:, 0].contiguous(), views[:, 1].contiguous(), cfg.method.temperature
    if adversary == "clae":
        return lambda: public_clae(method.model, x1, x2, t, 4 / 255)
    return lambda: public_rocl(method.model, x1, x2, t, 8 / 255)


def _timed(
    step: Step, optimizer: torch.optim.Optimizer, device: torch.device, amp: bool
) -> tuple[float, float]:
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
        loss = step()
    loss.backward()
    optimizer.step()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, (
        torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else 0.0
    )
