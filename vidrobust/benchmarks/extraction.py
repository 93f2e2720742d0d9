"""Time extraction and clean testing, compared with the bare model and the bare loader; memory."""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vidrobust import config
from vidrobust.benchmarks.data import readable
from vidrobust.benchmarks.timing import peak_mib, spread, synchronize
from vidrobust.data import (
    ClipDataset,
    EvalBatches,
    Record,
    batch_loader,
    build_records,
    eval_dataset,
    train_dataset,
    worker_deaths,
)
from vidrobust.evaluation.evaluate import evaluate_model
from vidrobust.evaluation.measured_model import MeasuredModel
from vidrobust.evaluation.representation.feature_files import (
    FeatureFile,
    FeatureRows,
    write_feature_file,
)
from vidrobust.models import Model, configured_backbone
from vidrobust.models.backbone import Backbone, BackboneParts
from vidrobust.models.feature_store import DiskStore
from vidrobust.models.inference import Outputs, compute_outputs, evaluation_mode
from vidrobust.utils import distributed

DIM = 512  # features of the memory and search measurements
_VIEWS = 2  # clips per video of which an evaluation compares the features


@dataclass(frozen=True)
class Tick:
    """Say when a batch was done.

    Attributes:
        wall: seconds of the clock.
        cpu: seconds of CPU time of this process, without those of loader processes.
        first: whether it is the first batch of a loader.
    """

    wall: float
    cpu: float
    first: bool

    @classmethod
    def now(cls, *, first: bool) -> "Tick":
        """Return the time at which a batch is done."""
        return cls(time.perf_counter(), time.process_time(), first)


Ticks = list[Tick]


@dataclass(frozen=True)
class Steady:
    """Hold the time between the first and the last batch, summed over loaders.

    Attributes:
        wall: seconds of the clock.
        cpu: seconds of CPU time.
    """

    wall: float
    cpu: float

    @classmethod
    def of(cls, ticks: Ticks) -> "Steady":
        """Return the time between ticks, without that before the first batch of a loader."""
        pairs = [(before, now) for before, now in pairwise(ticks) if not now.first]
        return cls(
            sum(now.wall - before.wall for before, now in pairs),
            sum(now.cpu - before.cpu for before, now in pairs),
        )


@dataclass
class RateRow:
    """Measurements of one part of the package and of its upper bound.

    Rates are those between the first and the last batch of each loader.

    Attributes:
        name: of the part.
        bound: name of what bounds its rate.
        run: runs the part once; returns when batches were done.
        run_bound: does only what the bound needs, on as many batches.
        clips: number of clips, those of first batches left out.
        times: of the part, of each round.
        bound_times: of the bound, of each round.
        rest: seconds of the part before, between and after its loaders, of each round.
    """

    name: str
    bound: str
    run: Callable[[], Ticks]
    run_bound: Callable[[], Ticks]
    clips: int
    times: list[Steady] = field(default_factory=list)
    bound_times: list[Steady] = field(default_factory=list)
    rest: list[float] = field(default_factory=list)

    @property
    def fraction(self) -> float:
        """Median over rounds of the bound's time as a fraction of the part's."""
        pairs = zip(self.bound_times, self.times, strict=True)
        return statistics.median(bound.wall / part.wall for bound, part in pairs)

    @property
    def cpu_fraction(self) -> float:
        """Return the same of CPU time, which other processes of the machine hardly change."""
        pairs = zip(self.bound_times, self.times, strict=True)
        return statistics.median(bound.cpu / part.cpu for bound, part in pairs)


@dataclass(frozen=True)
class Memory:
    """Peak memory of an extraction.

    Attributes:
        clips: number of clips.
        start: MiB of the process before it has the list of videos.
        listed: MiB with the list of videos.
        streamed: MiB at most, writing the features from disk in chunks.
        gathered: MiB at most, with all features and rows in memory.
    """

    clips: int
    start: float
    listed: float
    streamed: float
    gathered: float


def print_features(cfg: config.Config, *, videos: int, rounds: int, counts: Sequence[int]) -> None:
    """Print rates of extraction and clean testing, peak memory, and the time of a search.

    Args:
        cfg: data set, clips and model.
        videos: number of videos per round.
        rounds: rounds to measure.
        counts: numbers of clips of the memory measurement; () for none.
    """
    device = distributed.start(cfg.device)
    data = cfg.data
    rows = measure_rates(cfg, device, videos=videos, rounds=rounds)
    print(
        f"{rounds} rounds of {videos} videos, {cfg.eval.clips} clips of {data.frames} x {data.size}"
        f" x {data.size}, {cfg.model.backbone} on {device}, {torch.get_num_threads()} threads,"
        f" {data.workers} workers\n"
        "| part | bound | clips/s (lowest to highest) | bound, clips/s | fraction | of CPU time |"
        " rest, s |\n|---|---|---|---|---|---|---|"
    )
    for row in rows:
        ours, bound = ([row.clips / t.wall for t in side] for side in (row.times, row.bound_times))
        # a loader works in processes of its own
        cpu = (
            f"{row.cpu_fraction:.3f}" if row.bound == "bare model" and device.type == "cpu" else ""
        )
        print(
            f"| {row.name} | {row.bound} | {spread(ours, 2)} | {spread(bound, 2)} |"
            f" {row.fraction:.3f} | {cpu} | {spread(row.rest, 1)} |"
        )
    if counts:
        print(
            f"\npeak memory, {DIM} features per clip\n"
            "| clips | features, MiB | start, MiB | list of videos, MiB | peak, MiB |"
            " all in memory, MiB |\n"
            "|---|---|---|---|---|---|"
        )
    for count in counts:
        memory = measure_memory(count)
        print(
            f"| {count} | {count * DIM * 4 / 2**20:.0f} | {memory.start:.0f} |"
            f" {memory.listed:.0f} | {memory.streamed:.0f} | {memory.gathered:.0f} |"
        )
    for count in counts[-1:]:
        normalise, one, hundred = measure_search(count, rounds)
        print(
            f"\ncosine search in {count} x {DIM} float32: normalise {spread(normalise, 3)} s, the"
            f" ten nearest of 1 query {spread(one, 1, 1e3)} ms, of 100 queries"
            f" {spread(hundred, 1, 1e3)} ms"
        )


def measure_rates(
    cfg: config.Config, device: torch.device, *, videos: int, rounds: int
) -> list[RateRow]:
    """Time each part and its bound in turn, after one round to warm up; which is first alternates.

    Args:
        cfg: data set, clips and model.
        device: of the models.
        videos: number of videos per round.
        rounds: rounds to measure.
    """
    records = readable(cfg, videos)
    classes = build_records(cfg.data, "train")[1]
    # clips of a video: of the test, and of the views whose features the report compares
    test, views = (records, cfg.eval.clips), (records, _VIEWS)
    rows = []
    # loading is the bound of a model that costs nothing
    models = {"model": configured_backbone(cfg.model), "loader": _mean_colour()}
    for bound, backbone in models.items():
        model = Model(backbone, nn.Linear(backbone.dim, len(classes))).to(device)
        bench = _Bench(cfg, model, device)
        bare = bench.passes if bound == "model" else bench.loads
        for name, run, parts in (
            ("extraction", bench.extraction(records), [test]),
            ("clean testing", bench.clean_testing(records, classes), [test, views]),
        ):
            clips = sum(size for part in parts for size in bench.batches(len(part[0]), part[1])[1:])
            rows.append(RateRow(name, f"bare {bound}", run, bare(parts), clips))
    for round_ in range(rounds + 1):
        for row in rows:
            for side in ("part", "bound") if round_ % 2 else ("bound", "part"):
                start = time.perf_counter()
                ticks = row.run() if side == "part" else row.run_bound()
                whole = time.perf_counter() - start
                steady = Steady.of(ticks)
                if round_ and side == "part":
                    row.times.append(steady)
                    row.rest.append(whole - steady.wall)
                elif round_:
                    row.bound_times.append(steady)
    return rows


def _mean_colour() -> Backbone:
    """Return a backbone that costs nothing compared with loading."""

    class MeanColour(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, :, ::8, ::8].mean((2, 3, 4))

    return Backbone(BackboneParts(MeanColour(), 3, (0.0,) * 3, (1.0,) * 3))


# videos, and the clips of each
_Part = tuple[list[Record], int]


@dataclass(frozen=True)
class _Bench:
    """Run the parts and bounds of one model.

    Attributes:
        cfg: the configuration.
        model: the model.
        device: where it is.
    """

    cfg: config.Config
    model: Model
    device: torch.device

    def batches(self, videos: int, clips: int) -> list[int]:
        """Return the number of clips of each batch, of `clips` clips of each video."""
        number = max(1, self.cfg.eval.batch_size // clips)
        return [min(number, videos - first) * clips for first in range(0, videos, number)]

    def extraction(self, records: list[Record]) -> Callable[[], Ticks]:
        """Return a function that extracts features into a file."""
        cfg = self.cfg
        dataset = eval_dataset(cfg.data, records, cfg.eval.clips, cfg.eval.sampling)

        def outputs(clips: Tensor) -> list[Tensor]:
            return [self.model.backbone(clips)]

        def run() -> Ticks:
            with (
                tempfile.TemporaryDirectory() as folder,
                evaluation_mode(self.model, branch=cfg.eval.branch),
                self._clock([self.batches(len(records), cfg.eval.clips)]) as ticks,
            ):
                write_extraction(outputs, dataset, self.device, Path(folder), cfg)
            return ticks

        return run

    def clean_testing(self, records: list[Record], classes: list[str]) -> Callable[[], Ticks]:
        """Return a function that evaluates the model's own head without attacks.

        Its clips are `eval.clips` of each video, and two augmented views, whose features the
        geometry of the report compares.
        """
        cfg = self.cfg
        no_attack = replace(
            cfg, eval=replace(cfg.eval, threats=[], classifier="head", sensitivity=0, bias=[])
        )
        measured = MeasuredModel(self.model, None, "benchmark", "benchmark")
        phases = [self.batches(len(records), clips) for clips in (cfg.eval.clips, _VIEWS)]

        def run() -> Ticks:
            with tempfile.TemporaryDirectory() as folder, self._clock(phases) as ticks:
                out = Path(folder) / "eval"
                evaluate_model(no_attack, measured, out, lists=([], records, classes))
            return ticks

        return run

    @contextmanager
    def _clock(self, phases: Sequence[Sequence[int]]) -> Iterator[Ticks]:
        """Record when the backbone has done each batch.

        Args:
            phases: the clips of each batch of each loader. Other passes before them are left out.
        """
        times: Ticks = []
        ticks: Ticks = []

        def record(*_: object) -> None:
            synchronize(self.device)
            times.append(Tick.now(first=False))

        handle = self.model.backbone.register_forward_hook(record)
        try:
            yield ticks
        finally:
            handle.remove()
        firsts = [number == 0 for sizes in phases for number in range(len(sizes))]
        last = times[-len(firsts) :]
        ticks += [replace(tick, first=first) for tick, first in zip(last, firsts, strict=True)]

    def passes(self, parts: Sequence[_Part]) -> Callable[[], Ticks]:
        """Return a function that makes the passes of some parts, on random clips."""
        data = self.cfg.data
        phases = [self.batches(len(records), clips) for records, clips in parts]
        shape = (3, data.frames, data.size, data.size)
        x = torch.rand(max(map(max, phases)), *shape, device=self.device)

        @torch.no_grad()
        def run() -> Ticks:
            with (
                evaluation_mode(self.model, branch=self.cfg.eval.branch),
                self._clock(phases) as ticks,
            ):
                for size in chain.from_iterable(phases):
                    self.model.backbone(x[:size])
            return ticks

        return run

    def loads(self, parts: Sequence[_Part]) -> Callable[[], Ticks]:
        """Return a function that loads the clips of some parts and does nothing with them."""
        cfg = self.cfg
        datasets = [
            eval_dataset(cfg.data, records, clips, cfg.eval.sampling)
            if number == 0
            else train_dataset(cfg.data, cfg.augment, records, clips, cfg.seed)
            for number, (records, clips) in enumerate(parts)
        ]

        def run() -> Ticks:
            ticks: Ticks = []
            for dataset in datasets:
                number = max(1, cfg.eval.batch_size // dataset.spec.clips)
                batches = EvalBatches(list(range(len(dataset))), number)
                with worker_deaths(dataset):
                    loader = batch_loader(dataset, batches, cfg.data.workers)
                    ticks += [Tick.now(first=place == 0) for place, _ in enumerate(loader)]
            return ticks

        return run


def write_extraction(
    outputs: Outputs, dataset: ClipDataset, device: torch.device, folder: Path, cfg: config.Config
) -> Path:
    """Compute one output of every clip, and write it to a .npy file.

    Args:
        outputs: clips -> one output.
        dataset: the clips.
        device: of the model.
        folder: where the file goes.
        cfg: size of a batch and number of workers.
    """
    store = DiskStore(folder / "partial", "test", 1, "benchmark")
    compute_outputs(
        outputs,
        dataset,
        device,
        store,
        batch_size=cfg.eval.batch_size,
        workers=cfg.data.workers,
    )
    stored = store.stored()
    rows = FeatureRows(stored, 0, stored.counts(), per_video=False, half=False)
    file = FeatureFile(folder / "features.npy", "npy")
    return write_feature_file(file, rows, {}, folder / "partial")


def measure_memory(count: int) -> Memory:
    """Measure the peak memory of extracting features of `count` clips, in processes of their own.

    Every video is the same small image, and has one clip with DIM features.

    Args:
        count: number of clips.
    """
    start, listed, streamed = _peak_in_process(count, gathered=False)
    _, _, gathered = _peak_in_process(count, gathered=True)
    return Memory(count, start, listed, streamed, gathered)


def _peak_in_process(count: int, *, gathered: bool) -> tuple[float, float, float]:
    """Return MiB of memory of a new process: at its start, with the list of videos, at most."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_extract_synthetic, args=(count, gathered, sender))
    child.start()
    # without this process's copy, a child that dies ends recv()
    sender.close()
    try:
        start, listed, peak = receiver.recv()
    finally:
        child.join()
    return start, listed, peak


def _extract_synthetic(count: int, gathered: bool, sender: Connection) -> None:
    """Extract features of `count` small images, and send the peak memory after each part.

    Args:
        count: number of images.
        gathered: hold all features and rows in memory at the end, in place of writing chunks.
        sender: gets MiB at the start, with the list of videos, and at most.
    """
    words = ["data.frames=1", "data.size=8", "data.short_side=8", "data.workers=0"]
    words += ["data.timeout_s=0", "eval.batch_size=256", "eval.clips=1"]
    cfg = config.loads("", words)
    projection = torch.rand(3 * 8 * 8, DIM, generator=torch.Generator().manual_seed(0))
    start = peak_mib()
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top)
        Image.new("RGB", (8, 8), (9, 90, 200)).save(folder / "image.png")
        path = str(folder / "image.png")
        records = [Record(f"class {n % 100}/video {n:08}.avi", path, n % 100) for n in range(count)]
        dataset = eval_dataset(cfg.data, records, 1)
        listed = peak_mib()

        def outputs(clips: Tensor) -> list[Tensor]:
            return [clips.flatten(1) @ projection]

        cpu = torch.device("cpu")
        if gathered:
            store = DiskStore(folder / "partial", "test", 1, "benchmark")
            compute_outputs(outputs, dataset, cpu, store, batch_size=256, workers=0)
            store.load()
        else:
            write_extraction(outputs, dataset, cpu, folder, cfg)
        sender.send((start, listed, peak_mib()))


def measure_search(count: int, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Time cosine search by numpy among random features.

    Args:
        count: number of features.
        rounds: rounds to measure.

    Returns:
        Seconds to normalise them, and to find the ten nearest of one and of 100 queries.
    """
    features = np.random.default_rng(0).standard_normal((count, DIM), np.float32)
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    for _ in range(rounds):
        start = time.perf_counter()
        index = features / np.linalg.norm(features, axis=1, keepdims=True)
        times[0].append(time.perf_counter() - start)
        for queries, seconds in ((1, times[1]), (100, times[2])):
            start = time.perf_counter()
            nearest(index, index[:queries])
            seconds.append(time.perf_counter() - start)
    return times


def nearest(index: np.ndarray, queries: np.ndarray, k: int = 10) -> np.ndarray:
    """Return the rows of the k most similar entries, the most similar first.

    Args:
        index: normalised features (N, D).
        queries: normalised features (Q, D).
        k: how many, at most N.

    Returns:
        (Q, k) rows of the index.
    """
    similarity = queries @ index.T
    some = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(similarity, some, 1), axis=1, kind="stable")
    return np.take_along_axis(some, order, 1)
