"""Measure what a GPU gains from each switch: precision, memory order, compilation, and more.

Every measurement stands by itself: one that fails is recorded with its error, and the rest goes on.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust import config
from vidrobust.attacks import ThreatModel, pgd
from vidrobust.benchmarks.attacks import pgd_rows
from vidrobust.benchmarks.steps import pass_both_ways
from vidrobust.benchmarks.timing import synchronize
from vidrobust.methods import Method, build_method
from vidrobust.models import Model, build_model
from vidrobust.models.complexity import model_complexity
from vidrobust.models.fast_passes import to_measure
from vidrobust.training.optim import build_optimizer
from vidrobust.training.setup import arrange
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.logging import log
from vidrobust.views import AugmentSpec, apply_draws, draw_view, to_float

_BATCHES = 4  # that follow each other while transfer is timed


@dataclass(frozen=True)
class Network:
    """A network of the check, with the clips of a step.

    Attributes:
        options: of the configuration.
        batch: videos, with two clips each.
    """

    options: tuple[str, ...]
    batch: int


NETWORKS = {
    "r2plus1d_18, 16 x 112": Network(("model.backbone=r2plus1d_18", "data.size=112"), 32),
    "slowfast_r50, 32 x 224": Network(
        ("model.backbone=slowfast_r50", "data.frames=32", "data.size=224"), 8
    ),
    "mvit_v2_s, 16 x 224": Network(("model.backbone=torchvision:mvit_v2_s", "data.size=224"), 8),
    "resnet18, 1 x 32": Network(
        ("model.backbone=resnet18", "model.stem=cifar", "data.frames=1", "data.size=32"), 512
    ),
}
# the same code in seconds on a CPU
SMALL = {
    "r2plus1d_10, 4 x 32": Network(
        ("model.backbone=r2plus1d_10", "model.width=4", "data.frames=4", "data.size=32"), 4
    ),
    "resnet18, 1 x 32": Network(
        ("model.backbone=resnet18", "model.width=4", "data.frames=1", "data.size=32"), 8
    ),
}
# switch by switch, then all that go together
STEPS: dict[str, tuple[str, ...]] = {
    "fp32": ("train.amp=fp32", "train.channels_last=false"),
    "fp32, channels last": ("train.amp=fp32", "train.channels_last=true"),
    "bf16": ("train.amp=bf16", "train.channels_last=false"),
    "bf16, channels last": ("train.amp=bf16", "train.channels_last=true"),
    "bf16, compiled": ("train.amp=bf16", "train.channels_last=false", "train.compile=true"),
    "bf16, channels last, compiled": (
        "train.amp=bf16",
        "train.channels_last=true",
        "train.compile=true",
    ),
}
Result = dict[str, Any]


def check_gpu(out: Path, device: torch.device, *, small: bool, rounds: int, limit_s: float) -> None:
    """Run all measurements, and write them to a file after each of them.

    Args:
        out: JSON file.
        device: what is measured.
        small: take small networks and sizes, to rehearse on a CPU.
        rounds: rounds of each measurement, after one to warm up.
        limit_s: no measurement begins after so many seconds.
    """
    torch.manual_seed(0)
    begin = time.perf_counter()
    networks = SMALL if small else NETWORKS
    found: Result = {"device": _name(device), "torch": torch.__version__, "small": small}
    rates = _matrix_rates(device, 512 if small else 8192)
    found["matrix_tflops"] = rates
    for part, measure in _parts(networks, device, rounds, rates, small=small):
        late = time.perf_counter() - begin > limit_s
        found[part] = {"left_out": f"after {limit_s:.0f} s"} if late else _guarded(part, measure)
        with replacing(out) as file:
            file.write((json.dumps(found, indent=2) + "\n").encode())


def _guarded(part: str, measure: Callable[[], Result]) -> Result:
    """Return a measurement, or the error with which it failed."""
    begin = time.perf_counter()
    try:
        result = measure()
    # whatever fails, the measurements after it count
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        result = {"error": f"{type(error).__name__}: {reason}"}
    log.info(f"{part}: {json.dumps(result)} ({time.perf_counter() - begin:.0f} s)")
    return result


def _parts(
    networks: dict[str, Network],
    device: torch.device,
    rounds: int,
    rates: dict[str, float],
    *,
    small: bool,
) -> Iterator[tuple[str, Callable[[], Result]]]:
    """Yield (name, measurement), the most important ones first."""
    first = next(iter(networks))
    for name, network in networks.items():
        for switches in STEPS:
            measure = partial(_step, network, STEPS[switches], device, rounds, rates)
            yield f"step: {name}: {switches}", measure
        fused = partial(_step, network, STEPS["bf16"], device, rounds, rates, fused=True)
        yield f"step: {name}: bf16, fused optimizer", fused
    for switches in STEPS:
        words = (*STEPS[switches], "method.adversary.name=clae")
        yield (
            f"step of CLAE: {first}: {switches}",
            partial(_step, networks[first], words, device, rounds, rates),
        )
    yield f"transfer: {first}", partial(_transfer, networks[first], device, rounds)
    yield f"views: {first}", partial(_views, networks[first], device, rounds)
    for amp in ("fp32", "bf16"):
        for order in ("false", "true"):
            yield (
                f"PGD-20: {first}: {amp}, channels_last={order}",
                partial(_attack, networks[first], device, rounds, amp=amp, order=order),
            )
    yield f"PGD-20 as CUDA graph: {first}", partial(_graphed, networks[first], device, rounds)
    clips = 16 if small else 500
    yield f"PGD-20 of {clips} clips", partial(_evaluation, networks[first], device, clips)


def _name(device: torch.device) -> str:
    """Return the name of the chip."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.processor() or platform.machine()}"


def _seconds(run: Callable[[], object], device: torch.device, rounds: int) -> dict[str, Any]:
    """Return the median, the extremes of seconds, and the peak memory of calls in GiB."""
    seconds = []
    on_gpu = device.type == "cuda"
    for round_ in range(rounds + 1):
        if on_gpu and round_ == 1:
            torch.cuda.reset_peak_memory_stats(device)
        synchronize(device)
        begin = time.perf_counter()
        run()
        synchronize(device)
        if round_:  # round 0 warms up, and compiles
            seconds.append(time.perf_counter() - begin)
    result = {"s": statistics.median(seconds), "lowest": min(seconds), "highest": max(seconds)}
    if on_gpu:
        result["gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return result


def _matrix_rates(device: torch.device, side: int) -> dict[str, float]:
    """Return the measured rate of matrix products by precision, in 10^12 operations per second."""
    rates = {}
    # The convolutions of a step in fp32 compute in TF32 where torch allows it, so this one does.
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            a = torch.rand(side, side, device=device).to(dtype)
            result = _seconds(partial(torch.mm, a, a), device, 10)
            rates[name] = 2 * side**3 / result["lowest"] / 1e12
    finally:
        matmul.allow_tf32 = before
    return rates


def _loaded(network: Network, *words: str) -> config.Config:
    options = ["data.frames=16", *network.options, *words]
    # an option may not be given twice: keep the last value of each
    return config.loads("", [*{word.split("=")[0]: word for word in options}.values()])


def _step(
    network: Network,
    words: tuple[str, ...],
    device: torch.device,
    rounds: int,
    rates: dict[str, float],
    *,
    fused: bool = False,
) -> Result:
    """Time a training step on clips that are on the device."""
    torch._dynamo.reset()
    cfg = _loaded(network, *words)
    method = build_method(cfg, 10).to(device).train()
    # before compilation, which would count nothing
    shape = (3, cfg.data.frames, cfg.data.size, cfg.data.size)
    flops = model_complexity(method.model, shape).flops_per_clip
    bf16 = arrange(method, cfg.train)
    optimizer = build_optimizer(method, cfg.optim, method.model.backbone)
    if fused:
        for group in optimizer.param_groups:
            group["fused"] = True
    views = torch.rand(network.batch, method.views, *shape, device=device)
    result = _seconds(partial(_update, method, optimizer, views, bf16), device, rounds)
    if flops and cfg.method.adversary.name == "none":
        # A backward pass to weights and inputs costs two forward passes. Complexity counts a
        # multiplication with its addition once, the rate of matrix products counts both.
        rate = 2 * 3 * method.views * network.batch * flops / result["s"] / 1e12
        result |= {"tflops": rate, "of_matrix_rate": rate / rates["bf16" if bf16 else "fp32"]}
    return result


def _update(method: Method, optimizer: torch.optim.Optimizer, views: Tensor, bf16: bool) -> None:
    """Take one step of the optimizer."""
    optimizer.zero_grad(set_to_none=True)
    pass_both_ways(method, views, bf16=bf16)
    optimizer.step()


def _transfer(network: Network, device: torch.device, rounds: int) -> Result:
    """Time steps whose clips come from the CPU: at once, pinned, and pinned beside the step."""
    cfg = _loaded(network)
    method = build_method(cfg, 10).to(device).train()
    bf16 = arrange(method, cfg.train)
    optimizer = build_optimizer(method, cfg.optim, method.model.backbone)
    data = cfg.data
    shape = (network.batch, method.views, data.frames, data.size, data.size, 3)  # as loaders give
    clips = torch.randint(0, 256, shape, dtype=torch.uint8)
    pinned = clips.pin_memory() if device.type == "cuda" else clips

    def update(batch: Tensor) -> None:
        _update(method, optimizer, to_float(batch), bf16)

    def in_turn(source: Tensor) -> None:
        for _ in range(_BATCHES):
            update(source.to(device))

    def beside() -> None:
        """Copy each batch on a stream of its own while the step of the one before it runs."""
        copies, steps = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        with torch.cuda.stream(copies):
            ahead = pinned.to(device, non_blocking=True)
        for _ in range(_BATCHES):
            steps.wait_stream(copies)
            batch = ahead
            batch.record_stream(steps)
            with torch.cuda.stream(copies):
                ahead = pinned.to(device, non_blocking=True)
            update(batch)

    result = {
        "pageable": _seconds(partial(in_turn, clips), device, rounds),
        "pinned": _seconds(partial(in_turn, pinned), device, rounds),
    }
    if device.type == "cuda":
        result["pinned, beside the step"] = _seconds(beside, device, rounds)
    for row in result.values():
        row.update({name: row[name] / _BATCHES for name in ("s", "lowest", "highest")})
    return result


def _views(network: Network, device: torch.device, rounds: int) -> Result:
    """Time flips and colours of a batch on the device, and on the CPU."""
    cfg = _loaded(network)
    side = cfg.data.size
    spec = AugmentSpec(size=side)
    rng = np.random.default_rng(0)
    draws = torch.tensor([draw_view(spec, side, side, rng).columns for _ in range(network.batch)])
    shape = (network.batch, 3, cfg.data.frames, cfg.data.size, cfg.data.size)
    clips = torch.rand(shape)
    return {
        "on the device": _seconds(partial(apply_draws, clips.to(device), draws), device, rounds),
        "on the CPU": _seconds(partial(apply_draws, clips, draws), device, rounds),
    }


def _classifier(
    network: Network, device: torch.device, *words: str, clips: int = 8
) -> tuple[Model, Tensor, Tensor]:
    """Return a classifier with random weights, clips, and its predictions as labels."""
    cfg = _loaded(network, *words)
    model = to_measure(build_model(cfg.model, "linear", 10), device, cfg.eval)
    model.eval().requires_grad_(False)
    shape = (clips, 3, cfg.data.frames, cfg.data.size, cfg.data.size)
    x = torch.rand(shape, device=device)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def _attack(network: Network, device: torch.device, rounds: int, *, amp: str, order: str) -> Result:
    """Time PGD-20 of ours, a bare loop, and other libraries where they are installed."""
    model, x, y = _classifier(network, device, f"eval.amp={amp}", f"eval.channels_last={order}")
    rows = pgd_rows(model, x, y, 8 / 255, 20)
    return {row.name: _seconds(row.run, device, rounds) for row in rows}


def _graphed(network: Network, device: torch.device, rounds: int) -> Result:
    """Time the steps of PGD-20 with static shapes, launched one by one and as a CUDA graph."""
    if device.type != "cuda":
        return {"left_out": "CUDA graphs need a GPU"}
    model, x, y = _classifier(network, device)
    v = x.clone().requires_grad_(True)

    def step() -> None:
        loss = F.cross_entropy(model(v), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, v)
        with torch.no_grad():
            moved = torch.add(v, gradient.sign(), alpha=2 / 255)
            v.copy_(torch.max(torch.min(moved, x + 8 / 255), x - 8 / 255).clamp_(0, 1))

    def repeat(run: Callable[[], None]) -> None:
        for _ in range(20):
            run()

    eager = _seconds(partial(repeat, step), device, rounds)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return {"eager": eager, "graph": _seconds(partial(repeat, graph.replay), device, rounds)}


def _evaluation(network: Network, device: torch.device, clips: int) -> Result:
    """Time PGD-20 of many clips in batches of 32, once in each precision."""
    result: Result = {}
    for amp in ("fp32", "bf16"):
        model, x, y = _classifier(network, device, f"eval.amp={amp}", clips=min(clips, 32))
        pgd(_loss(model, y), x, ThreatModel("linf", 8 / 255), steps=1)  # warms up
        with _timed(device) as seconds:
            for _ in range(0, clips, len(x)):
                pgd(_loss(model, y), x, ThreatModel("linf", 8 / 255), steps=20)
        result[amp] = {"s": seconds[0], "clips_per_s": clips / seconds[0]}
    return result


def _loss(model: nn.Module, y: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: F.cross_entropy(model(x), y, reduction="none")


@contextmanager
def _timed(device: torch.device) -> Iterator[list[float]]:
    """Give a list that holds the duration of the block after it."""
    seconds: list[float] = []
    synchronize(device)
    begin = time.perf_counter()
    yield seconds
    synchronize(device)
    seconds.append(time.perf_counter() - begin)
