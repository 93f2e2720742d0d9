"""Time a training step of each method, compared with its lower bound and with public code.

The lower bound makes the same forward and backward passes through the same model, with a trivial
loss and no other work.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from vidrobust import config
from vidrobust.benchmarks.nt_xent import broadcast_nt_xent
from vidrobust.benchmarks.timing import spread, synchronize
from vidrobust.methods.adversarial.advcl import AdvCL
from vidrobust.methods.adversarial.adversary import in_mode
from vidrobust.methods.base import Method
from vidrobust.methods.build import build_method
from vidrobust.methods.registry import ADVERSARIES, METHODS, steps_of
from vidrobust.methods.spec import Cost
from vidrobust.models import Model, configured_backbone
from vidrobust.training.setup import arrange as arrange_as_configured
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError, lookup

Step = Callable[[], Tensor]  # returns the loss to backpropagate

# (method.name, method.adversary.name) of the steps that are timed by default
TIMED: tuple[tuple[str, str], ...] = (
    ("simclr", "none"),
    *(("simclr", name) for name in ("clae", "rocl", "acl", "dynacl", "advcl")),
    ("simsiam", "taro"),
    ("distill", "deacl"),
    *(("supervised", name) for name in ("pgd", "trades", "fast")),
)


@dataclass
class StepTiming:
    """Measurements of one implementation of a training step.

    Attributes:
        method: name of the method, or of its adversary if it has one.
        kind: "vidrobust", "lower bound" or "public code".
        seconds: time of each round.
        memory_gb: peak memory, GiB; 0 on devices other than GPUs.
        bf16: whether it computed in bf16.
    """

    method: str
    kind: str
    seconds: list[float] = field(default_factory=list)
    memory_gb: float = 0.0
    bf16: bool = False

    @property
    def median(self) -> float:
        """Median time, seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class _Way:
    """One implementation of a training step, with a model of its own."""

    timing: StepTiming
    model: nn.Module
    step: Step


def print_steps(cfg: config.Config, *, methods: Sequence[str], batch: int, rounds: int) -> None:
    """Print the time and memory of each method's training step.

    Args:
        cfg: sizes of clips and model, device and precision.
        methods: names of methods without an adversary, or of adversaries; empty: all of TIMED.
        batch: videos per batch.
        rounds: rounds to measure.

    Raises:
        UserError: for an unknown name, and for options that have no lower bound (`cost_of`).
    """
    device = distributed.start(cfg.device)
    pairs = {
        method if adversary == "none" else adversary: (method, adversary)
        for method, adversary in TIMED
    }
    selected = list(methods) or list(pairs)
    for name in selected:
        lookup(pairs, name, "--methods")
    # refuse options without a lower bound before anything is timed
    try:
        cost_of(cfg, *pairs[selected[0]])
    except ValueError as error:
        raise UserError(f"benchmark.py adversarial: {error}") from None
    bf16 = arrange_as_configured(configured(cfg, *pairs[selected[0]], device), cfg.train)
    precision = "bf16" if bf16 else "float32"
    print(
        f"{cfg.model.backbone}, {batch} videos of {cfg.data.frames} x {cfg.data.size} x"
        f" {cfg.data.size} on {device}, {precision}, {rounds} rounds"
    )
    print(
        "| method | step | s, median (lowest to highest) | of the lower bound | of public code"
        " | GiB |"
    )
    print("|---|---|---|---|---|---|")
    for name in selected:
        timings = measure_as_configured(cfg, pairs[name], batch, rounds, device)
        by_kind = {timing.kind: timing for timing in timings}
        for timing in timings:
            bound = timing.median / by_kind["lower bound"].median
            public = "-"
            if "public code" in by_kind:
                public = f"{timing.median / by_kind['public code'].median:.2f}"
            print(
                f"| {name} | {timing.kind} | {spread(timing.seconds, 3)} | {bound:.2f} | {public} |"
                f" {timing.memory_gb:.1f} |",
                flush=True,
            )


def measure_as_configured(
    cfg: config.Config, pair: tuple[str, str], batch: int, rounds: int, device: torch.device
) -> list[StepTiming]:
    """Time one method's step with the precision and memory layout of `train.*`.

    Args:
        cfg: sizes, precision, memory layout.
        pair: (method.name, method.adversary.name).
        batch: videos per batch.
        rounds: rounds to measure.
        device: device of the model.
    """
    arrange = partial(arrange_as_configured, cfg=cfg.train)
    return measure_steps(cfg, [pair], batch, rounds, device, arrange=arrange)


def cost_of(cfg: config.Config, name: str, adversary: str) -> Cost:
    """Return the passes of a training step, with the passes of all attack steps in `attack`.

    Args:
        cfg: options of the adversary, such as the number of steps.
        name: method.name.
        adversary: method.adversary.name.

    Raises:
        ValueError: for options that change the passes in ways which `Cost` cannot express.
    """
    attack_cfg = cfg.method.adversary
    cost = METHODS[name].cost if adversary == "none" else ADVERSARIES[adversary].cost(name)
    plain = (
        attack_cfg.schedule == "constant" and not attack_cfg.selector and not attack_cfg.faithful
    )
    if len(attack_cfg.threats) > 1 or not plain or cfg.method.clips_per_video != 2:
        raise ValueError(
            "the lower bound is defined for one threat with constant eps, two clips per video, no"
            " selector and faithful=false"
        )
    steps = 0 if adversary == "none" else steps_of(replace(attack_cfg, name=adversary))
    # With one step, CLAE's attack embeds its anchor in the same pass. With more, it needs another.
    anchor_passes = int(adversary == "clae" and steps > 1)
    return replace(cost, attack=cost.attack * steps, forward=cost.forward + anchor_passes)


def configured(cfg: config.Config, name: str, adversary: str, device: torch.device) -> Method:
    """Build a method and its adversary by name; other options are those of a configuration.

    A method with a teacher gets an untrained backbone as its teacher.

    Args:
        cfg: all other options.
        name: method.name.
        adversary: method.adversary.name.
        device: device of the method.
    """
    options = replace(
        cfg.method, name=name, adversary=replace(cfg.method.adversary, name=adversary)
    )
    method = build_method(replace(cfg, method=options), 10)
    if method.wants_teacher:
        method.set_teacher(configured_backbone(cfg.model))
    method = method.to(device).train()
    if isinstance(method, AdvCL):
        # pseudo-labels, which training would compute from the teacher's features
        method.pseudo.labels = torch.zeros(
            10**4, len(method.pseudo.counts), dtype=torch.long, device=device
        )
    return method


def lower_bound_step(model: Model, clips: Tensor, cost: Cost, step: float = 0.01) -> Tensor:
    """Make the passes of a training step, and no other work.

    Args:
        model: the model.
        clips: (B, C, T, H, W).
        cost: passes to make.
        step: size of an attack step.

    Returns:
        A scalar that depends on all embeddings with gradient.
    """
    # passes without gradient, such as those of a momentum encoder
    for _ in range(cost.forward):
        with torch.no_grad(), in_mode(model, False):
            model(clips)
    # attack steps: forward and backward to the input
    moved = torch.cat([clips] * cost.together) if cost.attack else clips
    with in_mode(model, cost.train_mode):
        for _ in range(cost.attack):
            v = moved.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(model(v).float().sum(), v)
            moved = torch.add(v.detach(), gradient.sign(), alpha=step).clamp_(0, 1)
    # passes whose gradient reaches the weights
    batches = [torch.cat([clips] * count) for count in cost.learned]
    return torch.stack([model(batch).float().square().mean() for batch in batches]).sum()


def public_clae(model: Model, x1: Tensor, x2: Tensor, temperature: float, eps: float) -> Tensor:
    """Compute CLAE's loss as its released code does (Ho and Vasconcelos 2020).

    Compared with `methods.adversarial.clae`, the attack also computes gradients of the weights, its
    embeddings are computed again, and similarities are computed by broadcasting. Both branches use
    the model's own norms here.

    Args:
        model: model with a branch "adv".
        x1: first views (B, C, T, H, W) in [0, 1].
        x2: second views, of the same shape.
        temperature: temperature of the loss.
        eps: Linf budget of the attack.
    """
    # the attack, from x1 itself
    with model.use_branch("adv"):
        anchor = model(x1)
        start = x1.clone().requires_grad_(True)
        broadcast_nt_xent(torch.cat([anchor, model(start)]), temperature).backward()
        assert start.grad is not None
        x_adv = x1 + eps * start.grad.sign()
    # drop the gradients that the attack left in the weights, then compute the loss
    model.zero_grad()
    z1 = model(x1)
    z2 = model(x2)
    with model.use_branch("adv"):
        z_adv = model(x_adv)
    clean = broadcast_nt_xent(torch.cat([z1, z2]), temperature)
    return clean + broadcast_nt_xent(torch.cat([z1, z_adv]), temperature)


def public_rocl(
    model: Model, x1: Tensor, x2: Tensor, temperature: float, eps: float, steps: int = 7
) -> Tensor:
    """Compute RoCL's loss as its released code does (Kim et al. 2020).

    Compared with `methods.adversarial.rocl`, each attack step embeds the other view again and also
    computes gradients of the weights.

    Args:
        model: the model.
        x1: first views (B, C, T, H, W) in [0, 1].
        x2: second views, of the same shape.
        temperature: temperature of the loss.
        eps: Linf budget of the attack.
        steps: steps of the attack.
    """
    # the attack, from a random start
    x_adv = (x1 + eps * (2 * torch.rand_like(x1) - 1)).clamp(0, 1)
    with in_mode(model, False):
        for _ in range(steps):
            v = x_adv.detach().requires_grad_(True)
            broadcast_nt_xent(model(torch.cat([v, x2])), temperature).backward()
            assert v.grad is not None
            # step size of the released code: 0.007 with an eps of 0.0314
            stepped = v.detach() + 0.223 * eps * v.grad.sign()
            x_adv = torch.max(torch.min(stepped, x1 + eps), x1 - eps).clamp(0, 1)
    # the loss: all pairs of the three views, and the regularizer
    model.zero_grad()
    regularizer = broadcast_nt_xent(model(torch.cat([x_adv, x2])), temperature)
    z1, z2, z_adv = model(torch.cat([x1, x2, x_adv])).chunk(3)
    pairs = [
        broadcast_nt_xent(torch.cat(pair), temperature)
        for pair in ((z1, z2), (z1, z_adv), (z2, z_adv))
    ]
    return 2 * torch.stack(pairs).mean() + regularizer / 256


def measure_steps(
    cfg: config.Config,
    names: list[tuple[str, str]],
    batch: int,
    rounds: int,
    device: torch.device,
    *,
    arrange: Callable[[Method], bool] = lambda method: False,
) -> list[StepTiming]:
    """Time whole training steps with SGD: ours, the lower bound, and public code if there is any.

    They are timed in turn, each with a model of its own, and with the same weights and clips.

    Args:
        cfg: sizes and all options but the names.
        names: (method.name, method.adversary.name) of each method.
        batch: videos per batch.
        rounds: rounds to measure, after one to warm up.
        device: device of the models.
        arrange: applied to each method before it is timed, such as to set its memory layout;
            returns whether to use bf16 autocast.

    Raises:
        ValueError: as `cost_of` does.
    """
    # two views per video, and a third one for AdvCL, which takes an unaugmented view as well
    shape = (batch, 3, 3, cfg.data.frames, cfg.data.size, cfg.data.size)
    views = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    ways: list[_Way] = []
    for name, adversary in names:
        # one per implementation; the third is not used if there is no public code
        copies = [configured(cfg, name, adversary, device) for _ in range(3)]
        arranged = [arrange(method) for method in copies]
        for method in copies[1:]:
            method.load_state_dict(copies[0].state_dict())
        own = _ways_of(cfg, (name, adversary), copies, views)
        for way in own:
            way.timing.bf16 = arranged[0]
        ways += own
    optimizers = [
        torch.optim.SGD([p for p in way.model.parameters() if p.requires_grad], 1e-4)
        for way in ways
    ]
    for round_ in range(rounds + 1):
        for way, optimizer in zip(ways, optimizers, strict=True):
            seconds, memory = _timed(way.step, optimizer, device, way.timing.bf16)
            if round_:  # round 0 warms up
                way.timing.seconds.append(seconds)
                way.timing.memory_gb = max(way.timing.memory_gb, memory)
    return [way.timing for way in ways]


def _ways_of(
    cfg: config.Config, pair: tuple[str, str], copies: Sequence[Method], views: Tensor
) -> list[_Way]:
    """Return the implementations of a method's step, each with its own copy of the method.

    Args:
        cfg: options of the adversary, and the temperature.
        pair: (method.name, method.adversary.name).
        copies: three copies of the method: for ours, the lower bound and public code.
        views: views of the batch (B, V, C, T, H, W), V is 3.
    """
    name, adversary = pair
    title = name if adversary == "none" else adversary
    ours, bound, public = copies
    clips = views[:, 0].contiguous()
    ids = torch.arange(len(views), device=views.device)
    ways = [
        _Way(StepTiming(title, "vidrobust"), ours, partial(_own_step, ours, views, ids)),
        _Way(
            StepTiming(title, "lower bound"),
            bound,
            partial(lower_bound_step, bound.model, clips, cost_of(cfg, name, adversary)),
        ),
    ]
    if adversary in ("clae", "rocl"):
        second = views[:, 1].contiguous()
        public_step, eps = {"clae": (public_clae, 4 / 255), "rocl": (public_rocl, 8 / 255)}[
            adversary
        ]
        step = partial(public_step, public.model, clips, second, cfg.method.temperature, eps)
        ways.append(_Way(StepTiming(title, "public code"), public, step))
    return ways


def pass_both_ways(method: Method, views: Tensor, *, bf16: bool) -> None:
    """Run the forward and backward pass of a training step.

    Args:
        method: the method, whose parameters get gradients.
        views: (B, V, C, T, H, W) in [0, 1].
        bf16: use bf16 autocast.
    """
    with torch.autocast(views.device.type, torch.bfloat16, enabled=bf16):
        loss = _own_step(method, views, torch.arange(len(views), device=views.device))
    loss.backward()


def _own_step(method: Method, views: Tensor, ids: Tensor) -> Tensor:
    return method(views[:, : method.views], ids, ids % 10)["loss"].mean()


def _timed(
    step: Step, optimizer: torch.optim.Optimizer, device: torch.device, amp: bool
) -> tuple[float, float]:
    """Return (seconds, peak memory in GiB) of a whole training step.

    Args:
        step: returns the loss.
        optimizer: optimizer of the step's model.
        device: device of the model; the memory is 0 if it is not a GPU.
        amp: whether to use bf16 autocast.
    """
    on_gpu = device.type == "cuda"
    synchronize(device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
        loss = step()
    loss.backward()
    optimizer.step()
    synchronize(device)
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else 0.0
