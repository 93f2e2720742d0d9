"""The running average of the weights: its formula, its resume, and that it is what is measured."""

import pytest
import torch

from tests.training.helpers import equal, tiny_config, train_state
from vidrobust import checkpoint
from vidrobust.evaluation import load_method
from vidrobust.training.ema import Average
from vidrobust.utils.errors import UserError


def test_it_is_its_formula_and_counts_are_copied():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    average = Average(net, 0.9)
    expected = net[0].weight.detach().clone()
    for _ in range(3):
        net(torch.rand(4, 2))
        with torch.no_grad():
            net[0].weight.add_(1.0)
        average.follow(net)
        expected = 0.9 * expected + 0.1 * net[0].weight.detach()
    assert (
        torch.allclose(average.state["0.weight"], expected)
        and int(average.state["1.num_batches_tracked"]) == 3
    )


def test_it_is_resumed_bitwise_and_measured(ucf, tmp_path):
    words = ["train.average=0.5", "train.checkpoint_every=1", "train.keep=9"]
    cfg = tiny_config(ucf, *words)
    whole = train_state(cfg, tmp_path / "whole")
    resumed = train_state(
        cfg, tmp_path / "resumed", tmp_path / "whole/checkpoints/step_00000002.pt"
    )
    assert all(equal(whole[key], resumed[key]) for key in whole) and "average" in whole
    last = load_method(cfg, whole, 2).model.state_dict()
    mean = load_method(tiny_config(ucf, *words, "eval.average=true"), whole, 2).model.state_dict()
    assert equal(last, whole["model"]) and equal(mean, whole["average"]) and not equal(last, mean)
    plain = train_state(tiny_config(ucf), tmp_path / "plain")
    assert equal(plain["model"], whole["model"]), "training does not see it"
    with pytest.raises(
        UserError, match="eval.average: the checkpoint was trained without train.average"
    ):
        checkpoint.weights(plain, average=True)
    with pytest.raises(UserError, match="was trained without train.average; set it to 0"):
        train_state(cfg, tmp_path / "late", tmp_path / "plain/checkpoints/last.pt")
