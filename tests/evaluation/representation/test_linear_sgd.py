"""Linear probes by SGD: against torch's own SGD, and what chooses among them."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vidrobust import config
from vidrobust.data import Record
from vidrobust.evaluation.representation.linear_sgd import (
    SgdSettings,
    best_on_test,
    fit_linear_sgd,
    sgd_probe,
)
from vidrobust.evaluation.representation.protocol_spec import FitInputs
from vidrobust.models.feature_store import Features
from vidrobust.utils.errors import UserError

SETTINGS = SgdSettings((0.01, 0.3), (0.0, 0.1), epochs=3, batch_size=7, seed=4)


def _data(n=40, classes=3, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    features = 3 + torch.randn(n, dim, generator=generator) + 2 * torch.eye(classes, dim)[labels]
    return features, labels


def _reference(features, labels, classes, rate, decay, settings):
    """Fit one layer with torch.optim.SGD and autograd."""
    x = (features - features.mean(0)) / features.std(0, correction=0)
    layer = nn.Linear(x.shape[1], classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    groups = [
        {"params": [layer.weight], "weight_decay": decay},
        {"params": [layer.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    generator = torch.Generator().manual_seed(settings.seed)
    steps = settings.epochs * math.ceil(len(x) / settings.batch_size)
    done = 0
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(x), generator=generator).split(settings.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done / steps))
            optimizer.zero_grad()
            F.cross_entropy(layer(x[batch]), labels[batch]).backward()
            optimizer.step()
            done += 1
    return layer(x).detach()


def test_every_setting_is_fitted_as_torchs_sgd_fits_it():
    features, labels = _data()
    layers = fit_linear_sgd(features, labels, 3, SETTINGS)
    assert len(layers) == len(SETTINGS.pairs) == 4
    for (rate, decay), layer in zip(SETTINGS.pairs, layers, strict=True):
        expected = _reference(features, labels, 3, rate, decay, SETTINGS)
        assert torch.allclose(layer(features), expected, atol=1e-5)


def test_features_that_do_not_vary_have_no_weight():
    features, labels = _data()
    features[:, 1] = 7.0
    (layer,) = fit_linear_sgd(features, labels, 3, SgdSettings((0.1,), (0.0,), 2))
    assert bool((layer.weight[:, 1] == 0).all()) and layer.weight.isfinite().all()


def _inputs(*words, videos=30, classes=3, groups=10, clips=2):
    """Return inputs of `videos` training videos from `groups` sources; test videos differ."""
    features, labels = _data(videos * clips, classes)
    labels = labels[::clips]
    features = features.view(videos, clips, -1) + 2 * torch.eye(classes, 5)[labels][:, None]
    index = torch.arange(videos)
    train = Features(features, labels, index, index[:, None], index, list(map(str, index)), [])
    records = [
        Record(f"v{i}", f"v{i}.avi", int(label), f"g{i % groups}") for i, label in enumerate(labels)
    ]
    cfg = config.loads("protocol: {epochs: 4}", ["protocol.augmented=0", *words])
    return FitInputs(
        cfg, nn.Identity(), records, train, train, classes, torch.device("cpu"), None, "trained"
    )


def test_the_choice_is_made_on_whole_sources_that_were_held_out(monkeypatch):
    """Make the labels of the held-out sources such that only one setting is right about them."""
    from vidrobust.evaluation.representation import linear_sgd

    inputs = _inputs("protocol.validation=0.3")
    rest, held_out = linear_sgd._held_out(inputs.train, 0.3)
    sources = [{inputs.train[i].group for i in part} for part in (rest, held_out)]
    assert not sources[0] & sources[1] and rest | held_out == set(range(30))
    assert len(held_out) == 9
    seen = []
    original = linear_sgd._fit

    def fit(features, inputs, settings):
        seen.append((set(features.index.tolist()), len(settings.pairs)))
        return original(features, inputs, settings)

    monkeypatch.setattr(linear_sgd, "_fit", fit)
    fitted = sgd_probe(inputs)
    # 24 settings see the rest; the chosen one is then fitted to all
    assert seen == [(rest, 24), (rest | held_out, 1)]
    assert fitted.chosen_on == "held-out training videos"


def test_test_labels_decide_in_the_other_protocol_alone():
    inputs = _inputs()
    wrong = dataclasses.replace(inputs.test, labels=(inputs.test.labels + 1) % 3)
    changed = dataclasses.replace(inputs, test=wrong)
    same = sgd_probe(inputs), sgd_probe(changed)
    assert same[0].settings == same[1].settings
    assert torch.equal(same[0].head.weight, same[1].head.weight)
    assert best_on_test(inputs).settings["acc"] > best_on_test(changed).settings["acc"]


def test_the_best_rate_is_found():
    """Only the difference of two features says the class, which takes many steps to learn."""
    rates = "protocol.rates=[1e-6,0.3,1e9]"
    inputs = _inputs(rates, "protocol.epochs=60", classes=2, videos=60, clips=1)
    generator = torch.Generator().manual_seed(0)
    common = 10 * torch.randn(60, 1, generator=generator)
    other = common + (2 * inputs.features.labels - 1)[:, None]
    features = dataclasses.replace(inputs.features, features=torch.stack([common, other], 2))
    fitted = sgd_probe(dataclasses.replace(inputs, features=features))
    assert fitted.settings["rate"] == 0.3 and fitted.settings["settings"] == 9
    assert fitted.settings["acc"] > 0.9


def test_a_rate_at_the_end_is_a_warning_of_the_report():
    (doubt,) = sgd_probe(_inputs("protocol.rates=[1e-7,1e-6,1e-5]")).warnings
    assert "of trained weights, 1e-07, is at an end of protocol.rates" in doubt


def test_too_few_sources_are_refused():
    with pytest.raises(UserError, match="too few sources to hold some out"):
        sgd_probe(_inputs(groups=1))


def test_features_that_are_not_finite_are_refused():
    inputs = _inputs()
    inputs.features.features[3, 0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN or infinite"):
        sgd_probe(inputs)
