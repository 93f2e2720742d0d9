import json
import shutil

import pytest
import torch
from torch import nn

from tests.helpers import tiny_ucf101
from vidrobust.attacks import ThreatModel
from vidrobust.config import Data
from vidrobust.data import eval_dataset, ucf101
from vidrobust.evaluation import evaluate_robust, robust_curve
from vidrobust.evaluation.robust import misclassification_loss

CFG = Data(frames=2, stride=2, short_side=20, size=16, workers=0)
EPS = (0.0, 2.4 / 255, 16 / 255, 1.0)


def _net():
    """Random weights made sensitive: it classifies some test videos right, and small budgets break some."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Flatten(1), nn.Linear(3 * 2 * 256, 2)).eval().requires_grad_(False)
    return net


def _run(root, out, net=None, **options):
    out.mkdir(exist_ok=True)
    records, _ = ucf101(root, "test", 1)
    settings = {"steps": 3, "restarts": 1, "seed": 0, "batch_size": 3, "workers": 0, "device": torch.device("cpu")}
    return evaluate_robust(
        net or _net(), eval_dataset(CFG, records, 1), list(range(len(records))), [ThreatModel("linf", e) for e in EPS],
        out, **(settings | options),
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny_ucf101(tmp_path_factory.mktemp("r"), train=1, test=5)


def test_eps_0_is_clean_accuracy_and_the_curve_never_rises(root, tmp_path):
    rows = _run(root, tmp_path)
    assert len(rows) == 40 and rows == [json.loads(line) for line in open(tmp_path / "results.jsonl")]
    curve = robust_curve(rows)
    clean = sum(r["clean_pred"] == r["label"] for r in rows[::4]) / 10
    assert curve[0]["robust_acc"] == clean == curve[0]["robust_acc_uint8"] and clean > 0
    accuracies = [c["robust_acc"] for c in curve]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[-1] == 0
    assert all(r["in_budget"] and r["measured"] <= r["eps"] + 1e-6 for r in rows)
    assert all(c["out_of_budget"] == 0 and c["max_measured"] <= c["eps"] + 1e-6 for c in curve)


def test_rows_say_who_broke_the_sample(root, tmp_path):
    for row in _run(root, tmp_path):
        right = row["clean_pred"] == row["label"]
        assert row["robust"] == (right and row["adv_pred"] == row["label"])
        assert row["killed_by"] == (None if row["robust"] else "pgd" if right else "clean")


@pytest.mark.parametrize("kept", [0, 1, 8, 11, 12, 29, 39])
def test_killed_at_any_row_it_goes_on_to_the_same_bytes(root, tmp_path, kept):
    _run(root, tmp_path / "whole", pictures=1)
    lines = (tmp_path / "whole/results.jsonl").read_text().splitlines(keepends=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    cut = tmp_path / "cut/results.jsonl"
    cut.write_text("".join(lines[:kept]) + lines[kept][:20])  # the kill tore a line in two
    rows = _run(root, tmp_path / "cut", pictures=1)
    assert cut.read_text() == "".join(lines) and len(rows) == 40
    names = [sorted(p.name for p in (tmp_path / d / "clips").iterdir()) for d in ("whole", "cut")]
    assert names[0] == names[1] and len(names[0]) == 1


def test_a_finished_evaluation_costs_nothing(root, tmp_path):
    rows = _run(root, tmp_path)

    def never(x):
        raise AssertionError

    assert _run(root, tmp_path, net=never) == rows


def test_a_broken_sample_is_not_attacked_again(root, tmp_path):
    net, sizes = _net(), []

    def counted(x):
        sizes.append(len(x))
        return net(x)

    _run(root, tmp_path, net=counted, batch_size=10)
    rows = _run(root, tmp_path)
    survive = [r["robust"] or r["uint8_pred"] == r["label"] for r in rows]  # one of the two is left to break
    # clean pass; per budget: (steps + 1) on the survivors of the budget before, two to verify; eps 0 is free
    expected = 10 + 2 * 10 * len(EPS) + 4 * sum(alive for i, alive in enumerate(survive) if (i + 1) % len(EPS))
    assert sum(sizes) == pytest.approx(expected)


def test_a_video_that_does_not_decode_is_a_failed_row_and_a_miss(tmp_path):
    root = tiny_ucf101(tmp_path / "data", train=1, test=2)
    whole = robust_curve(_run(root, tmp_path / "a"))
    records, _ = ucf101(root, "test", 1)
    open(records[0].path, "w").close()
    rows = _run(root, tmp_path / "b")
    bad = [r for r in rows if r["uid"] == records[0].uid]
    assert len(bad) == 4 and all(
        r["killed_by"] == "error" and not r["robust"] and "is empty" in r["error"] for r in bad
    )
    assert robust_curve(rows)[0]["n"] == whole[0]["n"] == 4


def test_the_best_iterate_is_a_wrong_one_if_there_is_one():
    """Cross-entropy alone ranks a confident right answer of three classes above a narrow wrong one."""
    logits = torch.tensor([[1.0, 0.9, 0.9], [1.0, 1.1, -5.0]])
    loss = misclassification_loss(lambda x: logits, torch.tensor([0, 0]))
    right, wrong = loss(torch.zeros(2, 1)).tolist()
    plain = nn.functional.cross_entropy(logits, torch.tensor([0, 0]), reduction="none")
    assert plain[0] > plain[1] and wrong > right


def test_accuracy_after_rounding_does_not_gain_from_smaller_budgets(root, tmp_path):
    """A budget of 0.4/255 vanishes when rounded; what it breaks must still be attacked at the next one."""
    records, _ = ucf101(root, "test", 1)
    found = []
    for name, budgets in (("alone", [1.0]), ("both", [0.4 / 255, 1.0])):
        (tmp_path / name).mkdir()
        threats = [ThreatModel("linf", eps) for eps in budgets]
        rows = evaluate_robust(
            lambda x: 100 * _net()(x), eval_dataset(CFG, records, 1), list(range(10)), threats, tmp_path / name,
            steps=9, restarts=1, seed=0, batch_size=5, workers=0, device=torch.device("cpu"),
        )  # fmt: skip
        found.append(robust_curve(rows))
    assert found[0][-1]["robust_acc_uint8"] == found[1][-1]["robust_acc_uint8"] == 0
    assert found[1][0]["robust_acc_uint8"] > 0
