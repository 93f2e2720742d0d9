"""Evaluations of a random model on a few tiny videos."""

import torch
from torch import nn

from vidrobust.attacks import parse_threat
from vidrobust.config import DataConfig
from vidrobust.data import batch_loader, corrupted_videos, eval_dataset
from vidrobust.evaluation import (
    AttackSettings,
    MeasureSettings,
    Suite,
    evaluate_bias,
    evaluate_corruptions,
    evaluate_robust,
)
from vidrobust.models.inference import to_clips

CFG = DataConfig(frames=2, stride=2, short_side=20, size=16, workers=0)
CPU = torch.device("cpu")
SMALL = [parse_threat("linf-1/255")]


def clips_of(dataset, index):
    """Return the clips (K, 3, T, H, W) of a video."""
    return to_clips(next(iter(batch_loader(dataset, [[(0, index)]], 0))), CPU)


def attacked_rows(predict, dataset, indices, threats, out, **options):
    """Return the rows of `evaluate_robust`, with its two groups of settings as options."""
    settings = MeasureSettings(
        predict,
        out,
        options.pop("batch_size"),
        options.pop("workers", 0),
        options.pop("device", CPU),
        options.pop("identity", ""),
    )
    attack = AttackSettings(list(threats), **({"seed": 0} | options))
    return evaluate_robust(settings, attack, dataset, list(indices))


def random_model(seed):
    """Return a linear model of two classes with the weights of a seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(1), nn.Linear(3 * 2 * 256, 2)).eval().requires_grad_(False)


def robust_rows(records, out, net, indices=(0, 1, 2, 3), threats=SMALL, cfg=CFG, **options):
    """Return the rows of an attack on a few videos."""
    out.mkdir(exist_ok=True)
    settings = {"suite": Suite("pgd", steps=2), "batch_size": 2}
    dataset = options.pop("dataset", None) or eval_dataset(cfg, records, 1)
    return attacked_rows(net, dataset, indices, threats, out, **(settings | options))


def _settings(net, out, *, batch_size=4, identity=""):
    return MeasureSettings(net, out, batch_size, workers=0, device=CPU, identity=identity)


def corruption_rows(
    records,
    out,
    net,
    indices=(0, 1, 2, 3),
    names=("contrast",),
    severities=(1, 5),
    seed=0,
    **options,
):
    """Return the rows of corruptions of a few videos."""
    out.mkdir(exist_ok=True)
    videos = corrupted_videos(CFG, records, 1, "uniform", options.pop("place", "view"), seed)
    return evaluate_corruptions(
        _settings(net, out, **options), videos, list(indices), list(names), list(severities)
    )


def bias_rows(records, out, net, indices=(0, 1, 2, 3), names=("freeze",), seed=0, **options):
    """Return the rows of cues of a few videos."""
    out.mkdir(exist_ok=True)
    others = options.pop("others", {})
    return evaluate_bias(
        _settings(net, out, **options),
        lambda: eval_dataset(CFG, records, 1),
        None,
        list(indices),
        list(names),
        seed=seed,
        others=others,
    )
