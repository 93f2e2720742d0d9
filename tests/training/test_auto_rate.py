"""The rate that accuracy under attack reduces, against the loop of the released code."""

import random

import pytest
import torch
from torch import nn

from vidrobust.training.auto_rate import AutoRate

# of AutoLoRa's code: 50 epochs, and 100 for AFF from ACL
W = [0, 16, 24, 28, 36, 40, 42, 44, 46, 48, 50]
# of its linear modes: 50 epochs, and 25 with --autoLR 1 alone
EVERY_4_OF_50 = list(range(0, 49, 4))
EVERY_4_OF_25 = list(range(0, 25, 4))


def method_of(weight=0.0):
    """Return a method whose model has one weight."""
    method = nn.ModuleDict({"model": nn.Linear(1, 1, bias=False)})
    method["model"].weight.data.fill_(weight)
    return method


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
    epochs = len(accuracies)
    rate = AutoRate([mark / epochs for mark in marks[1:]], gamma, patience, epochs)
    method = method_of()
    weight = method["model"].weight
    found = []
    for number, accuracy in enumerate(accuracies, 1):
        weight.data.fill_(number)
        rate.record(accuracy, method)
        found.append((rate.factor, int(weight)))
    rate.go_back(method)
    return found, int(weight)


def sequence(kind, length, seed):
    """Return accuracies: of few values, so that many are equal, or increasing with some noise."""
    numbers = random.Random(seed)
    if kind == "ties":
        return [numbers.randrange(4) / 4 for _ in range(length)]
    steps = [numbers.random() - {"rising": 0.1, "level": 0.25}[kind] for _ in range(length)]
    return [sum(steps[: i + 1]) / length + 0.3 for i in range(length)]


@pytest.mark.parametrize("kind", ["ties", "rising", "level"])
@pytest.mark.parametrize(
    ("marks", "epochs"), [(W, 50), (W, 100), (EVERY_4_OF_50, 50), (EVERY_4_OF_25, 25)]
)
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
    rate = AutoRate([mark / 50 for mark in W[1:]], 0.5, 0.75, 2)
    assert rate.checkpoints == [1, 2]


def test_going_back_restores_the_weights_of_model_and_branch_alone():
    method = method_of(1.0)
    method["branch"] = nn.Linear(1, 1, bias=False)
    method["branch"].weight.data.fill_(1.0)
    method.register_buffer("budget", torch.ones(()))
    rate = AutoRate([0.5], 0.5, 0.75, 2)
    rate.record(0.5, method)
    for value in method.state_dict().values():
        value.fill_(2.0)
    rate.go_back(method)
    assert method["model"].weight == 1
    assert method["branch"].weight == 1
    assert method.budget == 2


def test_its_state_is_plain_and_continues():
    accuracies = sequence("ties", 12, 3)
    whole, first, second = (AutoRate([0.25, 0.5, 0.75], 0.5, 0.75, 12) for _ in range(3))
    method, other = method_of(), method_of()
    for number, accuracy in enumerate(accuracies):
        for each in (method, other):
            each["model"].weight.data.fill_(number)
        whole.record(accuracy, method)
        (first if number < 5 else second).record(accuracy, other)
        if number == 4:
            second.load_state_dict(first.state_dict())
    assert whole.accuracies == second.accuracies == accuracies
    assert whole.factor == second.factor < 1
    assert torch.equal(method["model"].weight, other["model"].weight)
