import re

import pytest
import torch

from tests.helpers import tiny, tiny_ucf101, tool
from vidrobust import config
from vidrobust.benchmarks.attacks import bare_pgd, costs
from vidrobust.training.loop import train

SMALL = [
    "--rounds",
    "1",
    "--clips",
    "2",
    "--images",
    "4",
    "--steps",
    "3",
    "--queries",
    "5",
    "eval.effort=0.01",
]
MODEL = [
    "model.backbone=r2plus1d_10",
    "model.width=4",
    "data.frames=2",
    "data.size=16",
    "data.short_side=16",
]


def test_the_tool_measures_all_attacks_on_random_weights(tmp_path):
    done = tool("benchmark", "attacks", *SMALL, *MODEL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in (
        "bare loop",
        "vidrobust, any loss",
        "vidrobust, active set",
        "torchattacks",
        "foolbox",
        "APGD-CE, AutoAttack's",
        "FAB-T, torchattacks",
        "Square, vidrobust",
        "pgd-100x5",
        "video, effort 0.01",
    ):
        assert re.search(rf"^\| {re.escape(name)}.*\|.*\d", done.stdout, re.M), (name, done.stdout)


def test_the_tool_measures_a_checkpoint_with_a_classifier_and_refuses_others(tmp_path):
    root = tiny_ucf101(tmp_path / "data", train=2, test=4)
    for name, words in (("sup", ["method.name=supervised"]), ("csl", [])):
        train(config.loads("", tiny(f"data.root={root}", *words)), tmp_path / name)
    refused = tool("benchmark", "attacks", "--checkpoint", "csl", *SMALL, cwd=tmp_path)
    assert (
        refused.returncode == 1
        and "no classifier; train with method.name=supervised" in refused.stderr
    )
    done = tool("benchmark", "attacks", "--checkpoint", "sup", *SMALL, cwd=tmp_path)
    assert done.returncode in (0, 1) and (
        "| fgsm |" in done.stdout or "of the tried clips correctly" in done.stderr
    )


def test_the_bare_loop_raises_the_loss_within_eps():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.Linear(3 * 2 * 16, 3))
    x, y = torch.rand(5, 3, 2, 4, 4), torch.randint(3, (5,))
    before = torch.nn.functional.cross_entropy(net(x), y)
    x_adv = bare_pgd(net, x, y, 0.1, 10, 0.025, check=True)
    assert torch.nn.functional.cross_entropy(net(x_adv), y) > before + 0.05
    assert (x_adv - x).abs().max() <= 0.1 + 1e-6 and x_adv.min() >= 0


def test_costs_increase_from_fgsm_to_the_video_suite():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.Linear(3 * 2 * 16, 4)).requires_grad_(
        False
    )
    x = torch.rand(6, 3, 2, 4, 4)
    measured = costs(net, x, net(x).argmax(1), 1e-5, 0.01)
    forward = {name.split(",")[0]: cost for name, cost, *_ in measured}
    assert forward["fgsm"] < forward["pgd-20"] < forward["apgd-ce"] < forward["pgd-100x5"]
    assert forward["autoattack"] < forward["video"] and measured[0].accuracy == pytest.approx(1.0)
