"""Time models of other packages: a pass through the wrapper, and loading a file of weights."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from vidrobust import checkpoint, config
from vidrobust.benchmarks.timing import spread, synchronize
from vidrobust.models import Model
from vidrobust.models.build import source_backbone
from vidrobust.models.checkpoints import recognise_contents
from vidrobust.models.sources import build_source
from vidrobust.utils import distributed


def print_sources(cfg: config.Config, *, batch: int, rounds: int) -> None:
    """Print what a wrapped model of torchvision costs, compared with the model itself.

    Args:
        cfg: sizes of clips, and the device.
        batch: clips per batch.
        rounds: rounds of each measurement.
    """
    device = distributed.start(cfg.device)
    x = torch.rand(batch, 3, cfg.data.frames, cfg.data.size, cfg.data.size, device=device)
    rows = {
        "forward and backward, r3d_18": measure_passes(x, rounds),
        "loading weights, resnet50": measure_loading(rounds),
    }
    print(
        f"{batch} clips of {cfg.data.frames} x {cfg.data.size} x {cfg.data.size} on {device};"
        f" a file of {_file_mib():.0f} MiB; {rounds} rounds, both sides in turn\n"
        "| | package itself, s (lowest to highest) | vidrobust, s | ratio of medians |\n"
        "|---|---|---|---|"
    )
    for name, (theirs, ours) in rows.items():
        ratio = statistics.median(ours) / statistics.median(theirs)
        print(f"| {name} | {spread(theirs, 3)} | {spread(ours, 3)} | {ratio:.3f} |")


def measure_passes(x: Tensor, rounds: int) -> tuple[list[float], list[float]]:
    """Time a forward and backward pass to weights and pixels.

    Args:
        x: clips (B, 3, T, H, W) in [0, 1].
        rounds: rounds to measure, after one to warm up.

    Returns:
        Seconds of torchvision's r3d_18 on normalised clips, and of the same model wrapped.
    """
    source = build_source("torchvision:r3d_18")
    card = source.input
    mean, std = (
        torch.tensor(values, device=x.device).view(1, 3, 1, 1, 1)
        for values in (card.mean, card.std)
    )
    bare = torchvision.models.video.r3d_18().to(x.device)
    head = source.head or nn.Linear(source.dim, 400)
    wrapped = Model(source_backbone(source, (), ()), head).to(x.device)
    # the package's users normalise clips too
    return _in_turn(
        lambda: _pass(lambda clips: bare((clips - mean) / std), x),
        lambda: _pass(wrapped, x),
        rounds,
        x.device,
    )


def _pass(model: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Run a forward and a backward pass."""
    model(x.clone().requires_grad_(True)).square().mean().backward()


def measure_loading(rounds: int) -> tuple[list[float], list[float]]:
    """Time reading a file of weights into a network of torchvision.

    Args:
        rounds: rounds to measure, after one to warm up.

    Returns:
        Seconds of torch.load and load_state_dict, and of recognising and loading the same file.
    """
    network = torchvision.models.resnet50()
    source = build_source("torchvision:resnet50")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.pth"
        torch.save({"state_dict": network.state_dict()}, path)

        def theirs() -> None:
            network.load_state_dict(torch.load(path, weights_only=True)["state_dict"])

        def ours() -> None:
            found = recognise_contents(
                checkpoint.read_foreign(path), str(path), source.network.head_key
            )
            checkpoint.load_state(source.network.network, found.backbone, str(path))

        return _in_turn(theirs, ours, rounds, torch.device("cpu"))


def _file_mib() -> float:
    """Return the size of the file of weights, in MiB."""
    weights = torchvision.models.resnet50().state_dict().values()
    return sum(value.nbytes for value in weights) / 2**20


def _in_turn(
    theirs: Callable[[], None], ours: Callable[[], None], rounds: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Time two functions in turn, after one round to warm up; which is first alternates."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + 1):
        order = (0, 1) if round_ % 2 else (1, 0)
        for which in order:
            synchronize(device)
            start = time.perf_counter()
            (theirs, ours)[which]()
            synchronize(device)
            if round_:
                seconds[which].append(time.perf_counter() - start)
    return seconds
