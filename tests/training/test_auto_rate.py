"""The rate that accuracy under attack reduces, against the loop of the released code."""

import random

import pytest
import torch
from torch import nn

from vidrobust.config import OptimConfig
from vidrobust.training.auto_rate import AutoRate

W = [0, 16, 24, 28, 36, 40, 42, 44, 46, 48, 50]  # of AutoLoRa's code, 50 epochs
EVERY_4 = list(range(0, 25, 4))  # of its linear modes, 25 epochs


def released(accuracies, marks, divide=2.0, rho=0.75):
    """Transcribe the released loop: the rate after each epoch, and the epoch whose weights follow.

    Returns:
        [(rate, epoch of the weights with which the next epoch begins)], and the best epoch.
    """
    w, eta, best, saved = 1, 1.0, -1.0, 0
    etas = [0.0] * len(marks)
    etas[0] = eta
    losses = [0.0] * (len(accuracies) + 1)
    bests = [0.0] * len(marks)
    found = []
    for epoch in range(1, len(accuracies) + 1):
        weights = epoch
        losses[epoch - 1] = accuracies[epoch - 1]
        if accuracies[epoch - 1] > best:
            bests[w] = best = accuracies[epoch - 1]
            saved = epoch
        if epoch - 1 == marks[w]:
            begin, end = marks[w - 1], marks[w]
            count = sum(losses[j + 1] > losses[j] for j in range(begin, end))
            if count < rho * (end - begin) or (etas[w] == etas[w - 1] and bests[w] == bests[w - 1]):
                eta /= divide
                etas[w] = eta
                weights = saved
            if w < len(marks) - 1:
                w += 1
                bests[w] = bests[w - 1]
                etas[w] = etas[w - 1]
        found.append((eta, weights))
    return found, saved


def followed(accuracies, marks, gamma=0.5, patience=0.75):
    """Return the same of AutoRate; the only weight of the method is the number of its epoch."""
    cfg = OptimConfig(
        milestones=[mark / len(accuracies) for mark in marks[1:]], gamma=gamma, patience=patience
    )
    rate = AutoRate(cfg, len(accuracies))
    method = nn.Linear(1, 1, bias=False)
    found = []
    for number, accuracy in enumerate(accuracies, 1):
        method.weight.data.fill_(number)
        rate.record(accuracy, method)
        found.append((rate.factor, int(method.weight)))
    rate.go_back(method)
    return found, int(method.weight)


def sequence(kind, length, seed):
    """Return accuracies: of few values, so that many are equal, or increasing with some noise."""
    numbers = random.Random(seed)
    if kind == "ties":
        return [numbers.randrange(4) / 4 for _ in range(length)]
    steps = [numbers.random() - {"rising": 0.1, "level": 0.25}[kind] for _ in range(length)]
    return [sum(steps[: i + 1]) / length + 0.3 for i in range(length)]


@pytest.mark.parametrize("kind", ["ties", "rising", "level"])
@pytest.mark.parametrize(("marks", "epochs"), [(W, 50), (EVERY_4, 25)])
def test_rates_and_weights_are_those_of_the_released_loop(kind, marks, epochs):
    counts = set()
    for seed in range(60):
        accuracies = sequence(kind, epochs, seed)
        theirs = released(accuracies, marks)
        assert followed(accuracies, marks) == theirs, (kind, seed)
        counts.add(theirs[0][-1][0])
    # accuracies without a trend are reduced at every checkpoint
    assert len(counts) > 1 or kind == "ties"


def test_both_conditions_occur():
    """Accuracy that always increases keeps the rate; one that has increased often but not enough
    reduces it.
    """
    rising = [i / 100 for i in range(50)]
    assert followed(rising, W)[0][-1][0] == 1
    # after epoch 20, three of four epochs increase, and none is better than before
    falling = [*rising[:20], *(-0.1 + 0.02 * (i % 4) - 0.001 * i for i in range(30))]
    theirs, best = released(falling, W)
    assert followed(falling, W) == (theirs, best)
    assert theirs[-1][0] < 1 and best == 20


def test_a_short_run_has_checkpoints_too():
    rate = AutoRate(OptimConfig(milestones=[mark / 50 for mark in W[1:]]), 2)
    assert rate.checkpoints == [1, 2]


def test_its_state_is_plain_and_continues():
    cfg = OptimConfig(milestones=[0.25, 0.5, 0.75], gamma=0.5)
    accuracies = sequence("ties", 12, 3)
    whole, first, second = (AutoRate(cfg, 12) for _ in range(3))
    method, other = nn.Linear(1, 1), nn.Linear(1, 1)
    for number, accuracy in enumerate(accuracies):
        for each in (method, other):
            each.weight.data.fill_(number)
            each.bias.data.fill_(0)
        whole.record(accuracy, method)
        (first if number < 5 else second).record(accuracy, other)
        if number == 4:
            second.load_state_dict(first.state_dict())
    assert whole.accuracies == second.accuracies == accuracies
    assert whole.factor == second.factor < 1
    assert torch.equal(method.weight, other.weight)
