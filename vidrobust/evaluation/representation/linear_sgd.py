"""Fit linear probes by SGD, with many learning rates and weight decays at once.

All settings see the same batches, so that a batch is one matrix product for all of them. The one to
report is chosen on training videos that were held out by source, never on test videos.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from vidrobust import config
from vidrobust.data import Record, records_sha, split_by_group, train_dataset
from vidrobust.evaluation.representation.finite import require_finite
from vidrobust.evaluation.representation.protocol_spec import FitInputs, Fitted, ProtocolSpec
from vidrobust.evaluation.view_average import average_views
from vidrobust.models.feature_store import DiskStore, Features
from vidrobust.models.inference import extract
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log

_MOMENTUM = 0.9


@dataclass(frozen=True)
class SgdSettings:
    """Say how linear probes are fitted.

    Attributes:
        rates: learning rates for the batch size that is given, each with every decay.
        decays: weight decays (L2 penalties), each with every rate.
        epochs: passes over all clips.
        batch_size: clips per step.
        seed: of the order of the clips.
    """

    rates: tuple[float, ...]
    decays: tuple[float, ...]
    epochs: int = 50
    batch_size: int = 256
    seed: int = 0

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Every (rate, decay), in the order of the fitted layers."""
        return list(product(self.rates, self.decays))


@torch.no_grad()
def fit_linear_sgd(
    features: Tensor, labels: Tensor, classes: int, settings: SgdSettings
) -> list[nn.Linear]:
    """Return a linear layer per (rate, decay), fitted by SGD on cross-entropy.

    Momentum 0.9, cosine schedule to 0, no warm-up, weights that begin at 0, decay of the weights
    and not of the biases. Features are standardised by their statistics, which takes the place of
    the batch norm without weights in the probes of MAE and MoCo v3; layers take raw features.

    Args:
        features: of the training clips, (M, D).
        labels: classes of the clips, (M,), in 0..classes-1.
        classes: number of classes K.
        settings: rates, decays and length.

    Raises:
        UserError: for features that are NaN or infinite.
    """
    require_finite(features, "features of the probe")
    mean = features.mean(0)
    std = features.std(0, correction=0)
    # features that do not vary say nothing; an infinite deviation makes their weights 0
    std = torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, torch.inf)
    x = (features - mean) / std

    layers = _Layers(x, classes, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    total = settings.epochs * math.ceil(len(x) / settings.batch_size)
    step = 0
    for _ in range(settings.epochs):
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for batch in order.split(settings.batch_size):
            layers.step(x[batch], labels[batch], 0.5 * (1 + math.cos(math.pi * step / total)))
            step += 1
    count = len(settings.pairs)
    weights = layers.weight.view(-1, count, classes).unbind(1)
    biases = layers.bias.view(count, classes)
    return [_layer(w, b, mean, std) for w, b in zip(weights, biases, strict=True)]


class _Layers:
    """S linear layers side by side, one per setting, and their SGD.

    Args:
        x: standardised features, for their number D, type and device.
        classes: number of classes K.
        settings: rates and decays of the layers.
    """

    def __init__(self, x: Tensor, classes: int, settings: SgdSettings) -> None:
        self.count = len(settings.pairs)
        rates, decays = zip(*settings.pairs, strict=True)
        self.weight = x.new_zeros(x.shape[1], self.count * classes)
        self.bias = x.new_zeros(self.count * classes)
        self.velocities = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.rates = x.new_tensor(rates).repeat_interleave(classes)
        self.decays = x.new_tensor(decays).repeat_interleave(classes)
        self.decaying = any(decays)

    def step(self, clips: Tensor, labels: Tensor, fraction: float) -> None:
        """Take a step of SGD with all layers.

        Args:
            clips: features (B, D) of a batch.
            labels: their classes, (B,).
            fraction: of the learning rates, as the schedule says.
        """
        # gradient of the mean cross-entropy: softmax minus one at the true class
        logits = torch.addmm(self.bias, clips, self.weight).view(len(clips), self.count, -1)
        error = logits.softmax(2)
        truth = labels[:, None, None].expand(-1, self.count, 1)
        error.scatter_add_(2, truth, -torch.ones_like(truth, dtype=error.dtype))
        error = error.flatten(1).div_(len(clips))
        of_weight, of_bias = self.velocities
        of_weight.addmm_(clips.T, error, beta=_MOMENTUM)
        if self.decaying:
            of_weight.addcmul_(self.weight, self.decays)
        of_bias.mul_(_MOMENTUM).add_(error.sum(0))
        self.weight.addcmul_(of_weight, self.rates * fraction, value=-1)
        self.bias.addcmul_(of_bias, self.rates * fraction, value=-1)


def _layer(weight: Tensor, bias: Tensor, mean: Tensor, std: Tensor) -> nn.Linear:
    """Return a layer for raw features, of weights (D, K) for standardised ones."""
    layer = nn.Linear(weight.shape[0], weight.shape[1], device=weight.device)
    layer.weight.copy_((weight / std[:, None]).T)
    layer.bias.copy_(bias - layer.weight @ mean)
    return layer.requires_grad_(False)


def sgd_probe(inputs: FitInputs) -> Fitted:
    """Fit probes with all settings, choose one on held-out training videos, and fit it to all.

    Args:
        inputs: features, options, videos.

    Raises:
        UserError: where no training videos can be held out, and for features that are not finite.
    """
    options = inputs.cfg.protocol
    settings = _settings(inputs)
    learned = _augmented(inputs) if options.augmented else inputs.features
    rest, held_out = _held_out(inputs.train, options.validation)
    layers = _fit(_only(learned, rest), inputs, settings)
    best, chosen = _best(layers, _only(inputs.features, held_out), inputs, settings)
    log.info(
        f"linear_sgd: rate {chosen['rate']:g}, decay {chosen['decay']:g} of {len(layers)} settings;"
        f" accuracy {100 * chosen['acc']:.1f} % on {len(held_out)} held-out training videos"
    )
    rate, decay = settings.pairs[best]
    (layer,) = _fit(learned, inputs, replace(settings, rates=(rate,), decays=(decay,)))
    return Fitted(layer, chosen, "held-out training videos", _doubts(inputs, settings, rate))


def best_on_test(inputs: FitInputs) -> Fitted:
    """Fit probes with all settings to all training videos, and take the best on the test videos.

    This is how V-JEPA's evaluation reports its probes. The choice uses the test labels, so that the
    accuracy is not comparable with one of `sgd_probe`.

    Args:
        inputs: features, options, videos.

    Raises:
        UserError: for features that are not finite.
    """
    settings = _settings(inputs)
    learned = _augmented(inputs) if inputs.cfg.protocol.augmented else inputs.features
    layers = _fit(learned, inputs, settings)
    best, chosen = _best(layers, inputs.test, inputs, settings)
    doubts = _doubts(inputs, settings, chosen["rate"])
    return Fitted(layers[best], chosen, "test videos", doubts)


def _doubts(inputs: FitInputs, settings: SgdSettings, rate: float) -> tuple[str, ...]:
    """Return a warning, or none, of a chosen rate beyond which a better one may lie.

    Args:
        inputs: says whose weights.
        settings: the rates.
        rate: the chosen one.
    """
    if len(settings.rates) < 3 or rate not in (min(settings.rates), max(settings.rates)):
        return ()
    doubt = (
        f"the best rate of {inputs.name} weights, {rate:g}, is at an end of protocol.rates; add"
        " rates beyond it"
    )
    log.warning(doubt)
    return (doubt,)


def _settings(inputs: FitInputs) -> SgdSettings:
    """Return the configured settings."""
    options = inputs.cfg.protocol
    rates, decays = tuple(options.rates), tuple(options.decays)
    return SgdSettings(rates, decays, options.epochs, options.batch_size, inputs.cfg.seed)


def _best(
    layers: Sequence[nn.Linear], judged: Features, inputs: FitInputs, settings: SgdSettings
) -> tuple[int, dict[str, float]]:
    """Return the layer with the best accuracy on some videos, and what is reported about it.

    Args:
        layers: one per setting.
        judged: features of the videos; the logits of their clips are averaged.
        inputs: options and device.
        settings: rates and decays.
    """
    clips, labels = judged.features.to(inputs.device), judged.labels.to(inputs.device)
    average = inputs.cfg.eval.view_average
    right = [(average_views(layer(clips), average).argmax(1) == labels).sum() for layer in layers]
    best = int(torch.stack(right).argmax())  # the first of several
    rate, decay = settings.pairs[best]
    acc = int(right[best]) / len(labels)
    return best, {"rate": rate, "decay": decay, "settings": len(layers), "acc": acc}


def _fit(features: Features, inputs: FitInputs, settings: SgdSettings) -> list[nn.Linear]:
    """Return the layers of all settings, fitted to all clips of some videos."""
    clips = features.features.flatten(0, 1).to(inputs.device)
    labels = features.labels.repeat_interleave(features.features.shape[1]).to(inputs.device)
    return fit_linear_sgd(clips, labels, inputs.classes, settings)


def _held_out(train: list[Record], share: float) -> tuple[set[int], set[int]]:
    """Return the places of (the rest, the held-out part) of the training videos, by source.

    Raises:
        UserError: for too few sources.
    """
    numbered = [replace(record, uid=str(place)) for place, record in enumerate(train)]
    # a video without a group is a source of its own, by its name
    named = [
        replace(each, group=each.group or record.uid)
        for each, record in zip(numbered, train, strict=True)
    ]
    try:
        rest, held_out = split_by_group(named, share)
    except UserError:
        raise UserError(
            f"protocol.validation={share:g}: the {len(train)} training videos come from too few"
            " sources to hold some out; choose another fraction, or protocol.name=linear, which"
            " has nothing to choose"
        ) from None
    return {int(each.uid) for each in rest}, {int(each.uid) for each in held_out}


def _check(cfg: config.Config, train: list[Record]) -> None:
    """Raise UserError where no training videos can be held out, or clips not be augmented."""
    if train:
        _held_out(train, cfg.protocol.validation)
    _check_augmented(cfg, train)


def _check_augmented(cfg: config.Config, train: list[Record]) -> None:
    """Raise UserError where augmented clips cannot be sampled one by one."""
    if cfg.protocol.augmented and cfg.data.sampling.startswith("interval_"):
        raise UserError(
            f"protocol.augmented={cfg.protocol.augmented}: data.sampling={cfg.data.sampling} draws"
            " pairs of clips; set data.sampling=random"
        )


def _only(features: Features, places: set[int]) -> Features:
    """Return the features of the videos at some places of their list."""
    kept = [row for row, place in enumerate(features.index.tolist()) if place in places]
    return replace(
        features,
        features=features.features[kept],
        labels=features.labels[kept],
        index=features.index[kept],
    )


def _augmented(inputs: FitInputs) -> Features:
    """Return features of randomly augmented clips of the training videos, `protocol.augmented`.

    Every clip is another random crop of other frames. They are written to disk as they are
    computed, so that a killed evaluation continues.
    """
    cfg, count = inputs.cfg, inputs.cfg.protocol.augmented
    clips = train_dataset(cfg.data, cfg.augment, inputs.train, count, cfg.seed)
    clips.replace = False
    identity = [count, cfg.seed, cfg.data.sampling, asdict(cfg.augment), records_sha(inputs.train)]
    (features,) = extract(
        [inputs.backbone],
        clips,
        inputs.device,
        batch_size=cfg.eval.batch_size,
        workers=cfg.data.workers,
        title="augmented features",
        augmented=True,
        store=DiskStore(inputs.folder, f"augmented-{inputs.name}", 1, identity),
    )
    return features


_OPTIONS = frozenset({"rates", "decays", "epochs", "batch_size", "augmented"})
SGD = ProtocolSpec(
    help="linear probe by SGD; rate and decay chosen on held-out training videos",
    source="Chen et al. 2020 (SimCLR); He et al. 2022 (MAE)",
    fit=sgd_probe,
    options=_OPTIONS | {"validation"},
    check=_check,
)
BEST_ON_TEST = ProtocolSpec(
    help="the same, rate and decay chosen on the test videos: an upper bound",
    source="Bardes et al. 2024 (V-JEPA), Assran et al. 2025 (V-JEPA 2)",
    fit=best_on_test,
    options=_OPTIONS,
    check=_check_augmented,
)
