"""Time attacks, compared with a plain loop and with other libraries."""

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust import config
from vidrobust.attacks import (
    SCORES,
    Misclassify,
    Passes,
    ThreatModel,
    apgd,
    apgd_t,
    attack_step,
    fab_t,
    fmn,
    measure,
    pgd,
    square,
    suite_steps,
    worst_case,
)
from vidrobust.benchmarks.timing import spread, synchronize
from vidrobust.data import ClipDataset, Failure, Record, build_records, eval_dataset
from vidrobust.evaluation import load_method
from vidrobust.models import build_model, outputs_of
from vidrobust.models.fast_passes import to_measure
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError
from vidrobust.views import to_float


@dataclass(frozen=True)
class AttackSizes:
    """Sizes of the measurements.

    Attributes:
        rounds: rounds to measure.
        clips: clips per batch.
        images: single frames in the comparison with published code.
        steps: steps of PGD, APGD and FAB.
        queries: queries of Square.
    """

    rounds: int
    clips: int
    images: int
    steps: int
    queries: int


@dataclass
class Row:
    """Measurements of one way to attack the batch.

    Attributes:
        name: name of the attack and of its implementation.
        run: returns the attacked batch.
        seconds: time of each round.
        accuracy: accuracy on the attacked batch, 0 to 1.
    """

    name: str
    run: Callable[[], Tensor]
    seconds: list[float] = field(default_factory=list)
    accuracy: float = float("nan")

    @property
    def median(self) -> float:
        """Median time, seconds."""
        return statistics.median(self.seconds)


class Cost(NamedTuple):
    """Cost and effect of an attack suite.

    Attributes:
        name: name of the suite.
        forward: forward passes per clip.
        backward: backward passes per clip.
        seconds: seconds per clip.
        accuracy: robust accuracy, 0 to 1.
    """

    name: str
    forward: float
    backward: float
    seconds: float
    accuracy: float


@dataclass(frozen=True)
class _Target:
    """A model, the inputs that are attacked, their labels and the Linf budget."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float


def print_attacks(cfg: config.Config, state: dict[str, Any] | None, sizes: AttackSizes) -> None:
    """Print tables of PGD on clips, of published attacks on images, and of the cost of suites.

    Args:
        cfg: model, data set and device.
        state: checkpoint of a supervised run; None: random weights and random clips.
        sizes: sizes of the measurements.

    Raises:
        UserError: as `attacked` does.
    """
    device = distributed.start(cfg.device)
    torch.manual_seed(cfg.seed)
    # PGD on clips
    model, x, y = attacked(cfg, state, sizes.clips, device)
    clips = _Target(model, x, y, half_broken(model, x, y))
    print(
        f"{cfg.model.backbone}, {len(x)} clips of {tuple(x.shape[1:])} on {device},"
        f" PGD-{sizes.steps}, eps {clips.eps * 255:.2f}/255, {sizes.rounds} rounds"
    )
    rows = measure_rows(pgd_rows(model, x, y, clips.eps, sizes.steps), model, y, sizes.rounds)
    print(
        f"| {'PGD':<40} | s, median (lowest to highest) | of the bare loop | accuracy"
        " |\n|---|---|---|---|"
    )
    for row in rows:
        _print_row(row, rows[1].median)  # the bare loop that classifies its result, as ours does
    # published attacks, which take images only
    model, x, y = attacked(cfg, state, sizes.images, device, images=True)
    eps = half_broken(model, x, y)
    print(
        f"\n{len(x)} images of {tuple(x.shape[1:])}, eps {eps * 255:.2f}/255,"
        f" {sizes.steps} steps, 4 targets, {sizes.queries} queries"
    )
    print(
        f"| {'attack':<40} | s, median (lowest to highest) | of ours | accuracy"
        " |\n|---|---|---|---|"
    )
    rows = published_rows(model, x, y, eps, sizes.steps, sizes.queries)
    for row in measure_rows(rows, model, y, sizes.rounds):
        # each attack's own row is the first of its name
        if row.name.endswith("vidrobust"):
            ours = row.median
        _print_row(row, ours)
    # cost of whole suites on clips
    print(
        f"\n| attack on {len(clips.x)} clips, eps {clips.eps * 255:.2f}/255 | forward per clip |"
        " backward per clip | s per clip | accuracy |"
    )
    print("|---|---|---|---|---|")
    for cost in costs(clips.model, clips.x, clips.y, clips.eps, cfg.eval.effort):
        print(
            f"| {cost.name} | {cost.forward:.0f} | {cost.backward:.0f} | {cost.seconds:.2f} |"
            f" {cost.accuracy:.3f} |"
        )


def _print_row(row: Row, unit: float) -> None:
    """Print a row; `unit` is the time that counts as 1, in seconds."""
    print(
        f"| {row.name:<40} | {spread(row.seconds, 3)} | {row.median / unit:.3f} |"
        f" {row.accuracy:.3f} |"
    )


def attacked(
    cfg: config.Config,
    state: dict[str, Any] | None,
    count: int,
    device: torch.device,
    *,
    images: bool = False,
) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a model and inputs that it classifies correctly.

    Args:
        cfg: model and data set.
        state: checkpoint, whose test split is used. None: random weights and random clips, with the
            model's predictions as labels.
        count: number of clips, or of first frames.
        device: device of model and inputs.
        images: attack the first frames of the clips, as images.

    Returns:
        (model in eval mode, inputs (N, C, T, H, W) or (N, C, H, W) in [0, 1], labels (N,)).

    Raises:
        UserError: for a checkpoint without a classifier, or with too few correct predictions.
    """
    # the model, and random clips if there is no checkpoint
    if state is None:
        model = build_model(cfg.model, "linear", 10)
        x = torch.rand(count, 3, cfg.data.frames, cfg.data.size, cfg.data.size, device=device)
    else:
        records, classes = build_records(cfg.data, "test")
        model = load_method(cfg, state, len(classes)).model
        if not outputs_of(model.head):
            raise UserError(
                "--checkpoint: this one has no classifier; train with method.name=supervised"
            )
    # attacks need gradients of the input only
    model = to_measure(model, device, cfg.eval).eval().requires_grad_(False)
    predict: nn.Module = _Images(model).eval() if images else model
    if state is None:
        x = x[:, :, 0] if images else x
        with torch.no_grad():
            return predict, x, predict(x).argmax(1)
    x, y = _correct_inputs(
        predict, eval_dataset(cfg.data, records, 1), records, count, device, images
    )
    return predict, x, y


def _correct_inputs(
    model: nn.Module,
    dataset: ClipDataset,
    records: list[Record],
    count: int,
    device: torch.device,
    images: bool,
) -> tuple[Tensor, Tensor]:
    """Return up to `count` test inputs that the model classifies correctly, and their labels.

    Args:
        model: the classifier.
        dataset: the centre clip of each test video.
        records: the test videos.
        count: largest number of inputs.
        device: device of model and inputs.
        images: take the first frames of the clips, as images.

    Raises:
        UserError: if the model classifies fewer than four of the tried clips correctly.
    """
    correct: list[Tensor] = []
    labels: list[int] = []
    # about four times as many videos as needed, evenly spaced in the test split
    for index in range(0, len(records), max(len(records) // (4 * count), 1)):
        sample = dataset[0, index]
        if isinstance(sample, Failure):
            continue
        clip = to_float(sample["clips"].to(device))
        clip = clip[:, :, 0] if images else clip
        with torch.no_grad():
            if int(model(clip).argmax(1)) == sample["label"]:
                correct.append(clip)
                labels.append(sample["label"])
        if len(correct) == count:
            break
    if len(correct) < min(count, 4):
        raise UserError(
            f"--checkpoint: the model classifies only {len(correct)} of the tried clips correctly;"
            " train it longer"
        )
    return torch.cat(correct), torch.tensor(labels, device=device)


def measure_rows(rows: list[Row], model: nn.Module, y: Tensor, rounds: int) -> list[Row]:
    """Time every row once per round, in turn, and measure the accuracy that it leaves.

    Args:
        rows: attacks; they are filled in place and returned.
        model: the attacked classifier.
        y: labels (N,).
        rounds: rounds to measure, after one to warm up.
    """
    for round_ in range(rounds + 1):
        for row in rows:
            torch.manual_seed(round_)  # the same random starts for all rows
            synchronize(y.device)
            start = time.perf_counter()
            x_adv = row.run()
            synchronize(y.device)
            if round_:  # round 0 warms up
                row.seconds.append(time.perf_counter() - start)
            # not timed
            with torch.no_grad():
                row.accuracy = float((model(x_adv).argmax(1) == y).float().mean())
    return rows


def half_broken(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the Linf budget at which an attack breaks about half of the inputs.

    Args:
        model: the attacked classifier.
        x: inputs (N, C, ...) in [0, 1].
        y: labels (N,).
    """
    threat = ThreatModel("linf", 1.0)
    nearest = fmn(Misclassify(model, y, SCORES["margin"]), x, threat, steps=60)
    return float(measure(threat, x, nearest).median())


def pgd_rows(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> list[Row]:
    """Return implementations of PGD: plain loops, ours, and those of installed libraries.

    Args:
        model: the attacked classifier.
        x: inputs (N, C, ...) in [0, 1].
        y: labels (N,).
        eps: Linf budget.
        steps: steps of PGD.
    """
    threat = ThreatModel("linf", eps)
    size = 2.5 * eps / steps  # the default of our pgd

    # a loss that is no Misclassify: pgd cannot drop clips that are already misclassified
    def plain(v: Tensor) -> Tensor:
        return F.cross_entropy(model(v), y, reduction="none")

    bare = partial(bare_pgd, model, x, y, eps, steps, size)
    rows = [
        Row("bare loop, its last iterate as it is", bare),
        Row("bare loop, its last iterate classified", partial(bare, check=True)),
        Row("vidrobust, any loss", lambda: pgd(plain, x, threat, steps=steps)),
        Row("vidrobust, active set", lambda: pgd(Misclassify(model, y), x, threat, steps=steps)),
    ]
    if _is_installed("torchattacks"):
        import torchattacks

        attack = torchattacks.PGD(model, eps=eps, alpha=size, steps=steps, random_start=True)
        rows.append(Row("torchattacks", partial(attack, x, y)))
    if _is_installed("foolbox"):
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        linf_pgd = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=size, random_start=True)
        rows.append(Row("foolbox", lambda: linf_pgd(wrapped, x, y, epsilons=eps)[1]))
    if _is_installed("art"):
        rows.append(Row("ART", _art_pgd(_Target(model, x, y, eps), steps, size)))
    return rows


def bare_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int,
    size: float,
    *,
    check: bool = False,
) -> Tensor:
    """Run PGD as a plain loop: no checks, and no search for the best iterate.

    Args:
        model: the attacked classifier.
        x: inputs (N, C, ...) in [0, 1].
        y: labels (N,).
        eps: Linf budget.
        steps: number of steps.
        size: step size.
        check: also classify the result, which costs a forward pass.

    Returns:
        The last iterate.
    """
    # random start within eps
    x_adv = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
        # step, then project onto the budget and onto [0, 1]
        x_adv = x_adv.detach() + size * gradient.sign()
        x_adv = torch.clamp(torch.minimum(torch.maximum(x_adv, x - eps), x + eps), 0, 1)
    if check:
        with torch.no_grad():
            model(x_adv)
    return x_adv.detach()


def _art_pgd(target: _Target, steps: int, size: float) -> Callable[[], Tensor]:
    """Return PGD by the Adversarial Robustness Toolbox, which works on NumPy arrays.

    Args:
        target: model, inputs and budget.
        steps: number of steps.
        size: step size.
    """
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    model, x, y = target.model, target.x, target.y
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    classifier = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        tuple(x.shape[1:]),
        classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if x.is_cuda else "cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier,
        eps=target.eps,
        eps_step=size,
        max_iter=steps,
        num_random_init=1,
        batch_size=len(x),
        verbose=False,
    )
    # converted once, so that only the attack is timed
    images = x.cpu().numpy()
    labels = y.cpu().numpy()
    return lambda: torch.from_numpy(attack.generate(images, labels)).to(x.device)


def published_rows(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, queries: int
) -> list[Row]:
    """Return APGD, APGD-T, FAB-T and Square: ours, AutoAttack's and torchattacks'.

    Args:
        model: the attacked classifier.
        x: images (N, C, H, W) in [0, 1].
        y: labels (N,).
        eps: Linf budget.
        steps: steps of APGD and FAB.
        queries: queries of Square.
    """
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    threat = ThreatModel("linf", eps)
    targets = min(4, classes - 1)
    loss = Misclassify(model, y)
    margin = Misclassify(model, y, SCORES["margin"])
    rows = [
        Row("APGD-CE, vidrobust", lambda: apgd(loss, x, threat, steps=steps)),
        Row("APGD-T, vidrobust", lambda: apgd_t(loss, x, threat, steps=steps, targets=targets)),
        Row(
            "FAB-T, vidrobust",
            lambda: fab_t(loss, x, threat, steps=steps, targets=targets, minimal=False),
        ),
        Row("Square, vidrobust", lambda: square(margin, x, threat, queries=queries)),
    ]
    target = _Target(model, x, y, eps)
    if _is_installed("pyautoattack"):
        rows += _autoattack_rows(target, steps, queries, targets)
    if _is_installed("torchattacks"):
        rows += _torchattacks_rows(target, steps, queries, targets)
    if classes < 4:  # the other implementations of APGD-T fail with fewer classes
        rows = [
            row
            for row in rows
            if not row.name.startswith("APGD-T") or row.name.endswith("vidrobust")
        ]
    # a stable sort: ours stays the first of each attack
    return sorted(rows, key=lambda row: row.name.split(",")[0])


def _autoattack_rows(target: _Target, steps: int, queries: int, targets: int) -> list[Row]:
    """Return the four attacks by AutoAttack's code (Croce and Hein 2020).

    Args:
        target: model, images and budget.
        steps: steps of APGD and FAB.
        queries: queries of Square.
        targets: target classes of APGD-T and FAB-T.
    """
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    model = target.model
    shared: dict[str, Any] = {
        "norm": "Linf",
        "eps": target.eps,
        "n_restarts": 1,
        "seed": 0,
        "device": target.x.device,
    }
    attacks = {
        "APGD-CE": APGDAttack(model, n_iter=steps, loss="ce", **shared),
        "APGD-T": APGDAttack_targeted(model, n_iter=steps, n_target_classes=targets, **shared),
        "FAB-T": FABAttack_PT(
            model, n_iter=steps, targeted=True, n_target_classes=targets, **shared
        ),
        "Square": SquareAttack(
            model, n_queries=queries, p_init=0.8, loss="margin", resc_schedule=False, **shared
        ),
    }
    return [
        Row(f"{name}, AutoAttack's", partial(attack.perturb, target.x, target.y))
        for name, attack in attacks.items()
    ]


def _torchattacks_rows(target: _Target, steps: int, queries: int, targets: int) -> list[Row]:
    """Return the four attacks by torchattacks; arguments as in `_autoattack_rows`."""
    import torchattacks

    model = target.model
    shared: dict[str, Any] = {"norm": "Linf", "eps": target.eps, "seed": 0}
    attacks = {
        "APGD-CE": torchattacks.APGD(model, steps=steps, **shared),
        # torchattacks takes the number of classes, of which all but the true one are targets
        "APGD-T": torchattacks.APGDT(model, steps=steps, n_classes=targets + 1, **shared),
        "FAB-T": torchattacks.FAB(
            model, steps=steps, multi_targeted=True, n_classes=targets + 1, **shared
        ),
        "Square": torchattacks.Square(
            model, n_queries=queries, p_init=0.8, resc_schedule=False, **shared
        ),
    }
    return [
        Row(f"{name}, torchattacks", partial(attack, target.x, target.y))
        for name, attack in attacks.items()
    ]


def costs(model: nn.Module, x: Tensor, y: Tensor, eps: float, effort: float) -> list[Cost]:
    """Measure the cost of attacks from FGSM to AutoAttack on video.

    Args:
        model: the attacked classifier.
        x: clips (N, C, T, H, W) in [0, 1].
        y: labels (N,).
        eps: Linf budget.
        effort: factor of the steps and queries of the suites, eval.effort.
    """
    threat = ThreatModel("linf", eps)
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    suites = {
        "fgsm": [attack_step("fgsm")],
        "pgd-20": [attack_step("pgd", steps=20)],
        "pgd-100x5": [attack_step("pgd", steps=100, restarts=5)],
        "apgd-ce": [attack_step("apgd-ce")],
        "autoattack": suite_steps("standard", threat, x.shape[2], classes, effort=effort),
        "video": suite_steps("video", threat, x.shape[2], classes, effort=effort),
    }
    measured = []
    for name, steps in suites.items():
        counted = Passes(model)  # counts forward and backward passes
        start = time.perf_counter()
        outcome = worst_case(
            counted, x, y, threat, steps, generator=torch.Generator().manual_seed(0)
        )
        seconds = time.perf_counter() - start
        reduced = effort != 1 and name in ("autoattack", "video")
        measured.append(
            Cost(
                f"{name}, effort {effort:g}" if reduced else name,
                forward=counted.forward / len(x),
                backward=counted.backward / len(x),
                seconds=seconds / len(x),
                accuracy=sum(outcome.robust) / len(x),
            )
        )
    return measured


class _Images(nn.Module):
    """Classify images (N, C, H, W) as clips of one frame."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.unsqueeze(2))


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
