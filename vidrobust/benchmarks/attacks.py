"""Time attacks, compared with a plain loop and with other libraries."""

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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
from vidrobust.data import Failure, build_records, eval_dataset
from vidrobust.evaluation.loading import load_method
from vidrobust.models import build_model
from vidrobust.utils.errors import UserError
from vidrobust.views import to_float


def attacked(
    cfg: config.Config,
    state: dict[str, Any] | None,
    count: int,
    device: torch.device,
    *,
    images: bool = False,
) -> tuple[nn.Module, Tensor, Tensor]:
    """(model in eval mode, `count` clips or first frames that it classifies right, labels).

    Of a checkpoint and its test list; without one random weights, random clips, and what the model
    says of them. Raises UserError for a checkpoint without a classifier of its own, or one that is
    right too rarely.
    """
    if state is None:
        model: nn.Module = build_model(cfg.model, "linear", 10)
        x = torch.rand(count, 3, cfg.data.frames, cfg.data.size, cfg.data.size, device=device)
    else:
        records, classes = build_records(cfg.data, "test")
        model = load_method(cfg, state, len(classes)).model
        if not isinstance(model.head, nn.Linear):
            raise UserError(
                "--checkpoint: this one has no classifier; train with method.name=supervised"
            )
    model = model.to(device).eval().requires_grad_(False)
    model = _Images(model).eval() if images else model
    if state is None:
        x = x[:, :, 0] if images else x
        with torch.no_grad():
            return model, x, model(x).argmax(1)
    dataset = eval_dataset(cfg.data, records, 1)
    found: list[Tensor] = []
    labels: list[int] = []
    for index in range(0, len(records), max(len(records) // (4 * count), 1)):
        sample = dataset[0, index]
        if isinstance(sample, Failure):
            continue
        clip = to_float(sample["clips"].to(device))
        clip = clip[:, :, 0] if images else clip
        with torch.no_grad():
            if int(model(clip).argmax(1)) == sample["label"]:
                found.append(clip)
                labels.append(sample["label"])
        if len(found) == count:
            break
    if len(found) < min(count, 4):
        raise UserError(
            f"--checkpoint: it classifies only {len(found)} of the clips looked at right"
        )
    return model, torch.cat(found), torch.tensor(labels, device=device)


@dataclass
class Row:
    """One way to attack the batch: seconds of each round, and the accuracy that it leaves."""

    name: str
    run: Callable[[], Tensor]
    seconds: list[float] = field(default_factory=list)
    accuracy: float = float("nan")

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure_rows(rows: list[Row], model: nn.Module, y: Tensor, rounds: int) -> list[Row]:
    """Every row once a round, in turn; the first round is not counted."""
    for round_ in range(rounds + 1):
        for row in rows:
            torch.manual_seed(round_)
            _wait(y.device)
            start = time.perf_counter()
            found = row.run()
            _wait(y.device)
            if round_:
                row.seconds.append(time.perf_counter() - start)
            with torch.no_grad():
                row.accuracy = float((model(found).argmax(1) == y).float().mean())
    return rows


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def half_broken(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The Linf budget at which about half of the clips can be broken."""
    threat = ThreatModel("linf", 1.0)
    found = fmn(Misclassify(model, y, SCORES["margin"]), x, threat, steps=60)
    return float(measure(threat, x, found).median())


def pgd_rows(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> list[Row]:
    """PGD of `steps` steps: two bare loops, ours without and with the active set, and the libraries
    that are here.
    """
    threat, size = ThreatModel("linf", eps), 2.5 * eps / steps

    def plain(v: Tensor) -> Tensor:
        return F.cross_entropy(model(v), y, reduction="none")

    rows = [
        Row(
            "bare loop, its last iterate as it is", lambda: bare_pgd(model, x, y, eps, steps, size)
        ),
        Row(
            "bare loop, its last iterate classified",
            lambda: bare_pgd(model, x, y, eps, steps, size, check=True),
        ),
        Row("vidrobust, any loss", lambda: pgd(plain, x, threat, steps=steps)),
        Row("vidrobust, active set", lambda: pgd(Misclassify(model, y), x, threat, steps=steps)),
    ]
    if _here("torchattacks"):
        import torchattacks

        theirs = torchattacks.PGD(model, eps=eps, alpha=size, steps=steps, random_start=True)
        rows.append(Row("torchattacks", lambda: theirs(x, y)))
    if _here("foolbox"):
        import foolbox

        seen = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        attack = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=size, random_start=True)
        rows.append(Row("foolbox", lambda: attack(seen, x, y, epsilons=eps)[1]))
    if _here("art"):
        rows.append(Row("ART", _art_pgd(model, x, y, eps, steps, size)))
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
    """PGD as one writes it by hand: no checks, no best iterate. check: one forward pass more, of
    the result.
    """
    x_adv = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
        x_adv = x_adv.detach() + size * gradient.sign()
        x_adv = torch.clamp(torch.minimum(torch.maximum(x_adv, x - eps), x + eps), 0, 1)
    if check:
        with torch.no_grad():
            model(x_adv)
    return x_adv.detach()


def _art_pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, size: float
) -> Callable[[], Tensor]:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

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
        eps=eps,
        eps_step=size,
        max_iter=steps,
        num_random_init=1,
        batch_size=len(x),
        verbose=False,
    )
    images, labels = x.cpu().numpy(), y.cpu().numpy()
    return lambda: torch.from_numpy(attack.generate(images, labels)).to(x.device)


def published_rows(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, queries: int
) -> list[Row]:
    """APGD, APGD-T, FAB-T and Square beside AutoAttack's and torchattacks' own code. x: images (B,
    C, H, W).
    """
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    threat, targets = ThreatModel("linf", eps), min(4, classes - 1)
    loss, margin = Misclassify(model, y), Misclassify(model, y, SCORES["margin"])
    rows = [
        Row("APGD-CE, vidrobust", lambda: apgd(loss, x, threat, steps=steps)),
        Row("APGD-T, vidrobust", lambda: apgd_t(loss, x, threat, steps=steps, targets=targets)),
        Row(
            "FAB-T, vidrobust",
            lambda: fab_t(loss, x, threat, steps=steps, targets=targets, minimal=False),
        ),
        Row("Square, vidrobust", lambda: square(margin, x, threat, queries=queries)),
    ]
    if _here("pyautoattack"):
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
        from pyautoattack.fab_pt import FABAttack_PT
        from pyautoattack.square import SquareAttack

        shared: dict[str, Any] = {
            "norm": "Linf",
            "eps": eps,
            "n_restarts": 1,
            "seed": 0,
            "device": x.device,
        }
        a = APGDAttack(model, n_iter=steps, loss="ce", **shared)
        b = APGDAttack_targeted(model, n_iter=steps, n_target_classes=targets, **shared)
        c = FABAttack_PT(model, n_iter=steps, targeted=True, n_target_classes=targets, **shared)
        d = SquareAttack(
            model, n_queries=queries, p_init=0.8, loss="margin", resc_schedule=False, **shared
        )
        for name, attack in (("APGD-CE", a), ("APGD-T", b), ("FAB-T", c), ("Square", d)):
            rows.append(Row(f"{name}, AutoAttack's", lambda attack=attack: attack.perturb(x, y)))  # type: ignore[misc]
    if _here("torchattacks"):
        import torchattacks

        e = torchattacks.APGD(model, norm="Linf", eps=eps, steps=steps, seed=0)
        f = torchattacks.APGDT(
            model, norm="Linf", eps=eps, steps=steps, seed=0, n_classes=targets + 1
        )
        g = torchattacks.FAB(
            model,
            norm="Linf",
            eps=eps,
            steps=steps,
            seed=0,
            multi_targeted=True,
            n_classes=targets + 1,
        )
        h = torchattacks.Square(
            model, norm="Linf", eps=eps, n_queries=queries, p_init=0.8, seed=0, resc_schedule=False
        )
        for name, attack in (("APGD-CE", e), ("APGD-T", f), ("FAB-T", g), ("Square", h)):
            rows.append(Row(f"{name}, torchattacks", lambda attack=attack: attack(x, y)))  # type: ignore[misc]
    if classes < 4:  # theirs fail
        rows = [
            row
            for row in rows
            if not row.name.startswith("APGD-T") or row.name.endswith("vidrobust")
        ]
    return sorted(rows, key=lambda row: row.name.split(",")[0])


Cost = tuple[str, float, float, float, float]


def costs(model: nn.Module, x: Tensor, y: Tensor, eps: float, effort: float) -> list[Cost]:
    """(attack, forward and backward passes a clip, seconds a clip, accuracy) from FGSM to
    AutoAttack on video.
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
    found = []
    for name, steps in suites.items():
        counted = Passes(model)
        start = time.perf_counter()
        outcome = worst_case(
            counted, x, y, threat, steps, generator=torch.Generator().manual_seed(0)
        )
        seconds = time.perf_counter() - start
        title = (
            name
            if effort == 1 or name not in ("autoattack", "video")
            else f"{name}, effort {effort:g}"
        )
        found.append(
            (
                title,
                counted.forward / len(x),
                counted.backward / len(x),
                seconds / len(x),
                sum(outcome.robust) / len(x),
            )
        )
    return found


class _Images(nn.Module):
    """The model on (B, C, H, W), each a clip of one frame."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.unsqueeze(2))


def _here(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
