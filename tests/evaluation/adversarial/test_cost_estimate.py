"""The estimated cost of attacks is that of the passes which they make."""

import importlib

import pytest
import torch
from torch import nn

from tests.evaluation.helpers import CFG, random_model, robust_rows
from tests.helpers import tiny, tiny_ucf101, tool
from vidrobust.attacks import parse_threat
from vidrobust.data import build_records
from vidrobust.evaluation import AttackSettings, Suite
from vidrobust.evaluation.adversarial import cost_estimate
from vidrobust.evaluation.adversarial.cost_estimate import (
    Estimate,
    estimate_attacks,
    videos_left,
)
from vidrobust.evaluation.adversarial.targets import Unit

THREATS = [parse_threat(name) for name in ("linf-1/255", "linf-8/255", "l2-0.5", "linf-0")]


def _strong(classes=3):
    """Return a classifier of class 0 that no small perturbation breaks."""
    linear = nn.Linear(3 * 2 * 256, classes)
    linear.weight.data *= 0.001
    linear.bias.data[0] = 6.0
    return nn.Sequential(nn.Flatten(1), linear).eval().requires_grad_(False)


def _unit(predict, labels, clips=8):
    torch.manual_seed(0)
    x = torch.rand(clips, 3, 2, 16, 16)
    uids = [str(i) for i in range(clips)]
    fps = [25.0] * clips
    return Unit(x, labels, uids, list(range(clips)), fps, [], predict)


def _settings(suite, threats=THREATS):
    return AttackSettings(threats, suite, seed=0)


@pytest.fixture
def passes_of_a_second(monkeypatch):
    """Let every measured run of the model take eight seconds: a pass of a clip takes one."""

    def timed(run, x):
        run()
        return 8.0

    monkeypatch.setattr(cost_estimate, "_timed", timed)


@pytest.mark.parametrize(
    "suite",
    [Suite("pgd", steps=3, restarts=2), Suite("fmn", steps=3), Suite("autoattack", effort=0.01)],
    ids=str,
)
def test_the_bound_is_the_time_of_the_passes_in_the_rows(tmp_path, passes_of_a_second, suite):
    predict = _strong()
    attack = _settings(suite)
    estimate = estimate_attacks(_unit(predict, torch.zeros(8, dtype=torch.long)), attack, 2000)
    records = build_records_of(tmp_path)
    rows = robust_rows(records, tmp_path / "out", predict, (0, 1), THREATS, suite=suite)
    forward = sum(cost[0] for row in rows for cost in row.passes.values()) / 2
    backward = sum(cost[1] for row in rows for cost in row.passes.values()) / 2
    # the suite also classifies each clip anew
    attacks_s = 2000 * max(forward, backward)
    assert attacks_s < estimate.at_most_s < attacks_s + 2000 * 60
    assert forward > 0
    # nothing breaks, so that the whole bound is expected
    assert estimate.about_s == pytest.approx(estimate.at_most_s, rel=0.2)


def build_records_of(folder):
    """Return the records of two videos of class 0."""
    tiny_ucf101(folder / "data", ("Alpha",), train=1, test=2)
    data = type(CFG)(**{**vars(CFG), "name": "ucf101", "root": str(folder / "data")})
    return build_records(data, "test")[0]


def test_clips_that_are_wrong_or_break_early_cost_little(passes_of_a_second):
    attack = _settings(Suite("pgd", steps=50))
    wrong = estimate_attacks(_unit(_strong(), torch.ones(8, dtype=torch.long)), attack, 100)
    assert wrong.about_s < 0.1 * wrong.at_most_s
    weak = random_model(0)
    unit = _unit(weak, torch.zeros(8, dtype=torch.long))
    unit.labels = weak(unit.x).argmax(1)
    early = estimate_attacks(unit, _settings(Suite("pgd", steps=50), THREATS[1:2]), 1000)
    assert 0.03 * early.at_most_s < early.about_s < 0.5 * early.at_most_s


class _NoBackward(torch.autograd.Function):
    """The identity, without a backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()


def test_a_black_box_attack_needs_no_backward_pass_and_is_not_foretold_by_pgd(passes_of_a_second):
    net = _strong()
    unit = _unit(lambda x: net(_NoBackward.apply(x)), torch.zeros(8, dtype=torch.long))
    estimate = estimate_attacks(unit, _settings(Suite("square", queries=50)), 1000)
    assert estimate.about_s is None
    # three budgets of 50 queries, and classifying each clip anew
    assert 150_000 <= estimate.at_most_s < 1000 * (150 + 60)
    with pytest.raises(NotImplementedError):
        estimate_attacks(unit, _settings(Suite("pgd", steps=50)), 1000)


def test_ranks_share_the_time(passes_of_a_second):
    unit = _unit(_strong(), torch.zeros(8, dtype=torch.long))
    alone = estimate_attacks(unit, _settings(Suite("pgd", steps=50)), 1000)
    shared = estimate_attacks(unit, _settings(Suite("pgd", steps=50)), 1000, ranks=4)
    assert shared.at_most_s == alone.at_most_s / 4


def test_short_evaluations_are_not_measured_twice_and_no_random_number_is_used():
    passes = []

    def predict(x):
        passes.append(len(x))
        torch.rand(1)  # as a random model
        return x.flatten(1)[:, :3] * 10

    unit = _unit(predict, torch.zeros(8, dtype=torch.long))
    before = torch.get_rng_state()
    assert estimate_attacks(unit, _settings(Suite("pgd", steps=2)), 8) is None
    assert passes == [8]
    assert estimate_attacks(unit, _settings(Suite("pgd", steps=2)), 8, least_s=0) is not None
    assert torch.equal(torch.get_rng_state(), before)


def test_the_sentence_offers_smaller_limits_with_their_intervals():
    text = str(Estimate(3783, 18000.0, 13200.0))
    assert text == (
        "about 3 h 40 min on this machine (at most 5 h); eval.limit=1000: 58 min, interval of ±3"
        " points; eval.limit=200: 12 min, interval of ±7 points"
    )
    assert str(Estimate(60, 120.0)) == "at most 2 min on this machine"


def test_only_videos_without_all_rows_are_left(tmp_path):
    attack = _settings(Suite("pgd"), THREATS[:2])
    assert videos_left(tmp_path, attack, [0, 1, 2]) == 3
    rows = [(0, "linf-1/255"), (0, "linf-8/255"), (1, "linf-1/255"), (7, "linf-8/255")]
    lines = [f'{{"index": {index}, "threat": "{threat}"}}\n' for index, threat in rows]
    (tmp_path / "results.jsonl").write_text("".join(lines[:2]) + '{"index": 2, "thr')
    (tmp_path / "results.rank1.jsonl").write_text("".join(lines[2:]))
    assert videos_left(tmp_path, attack, [0, 1, 2]) == 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    top = tmp_path_factory.mktemp("estimated")
    tiny_ucf101(top / "data")
    (top / "config.yaml").write_text("data: {root: data}")
    options = tiny("eval.enabled=false", "train.epochs=1")
    done = tool("train_net", "--cfg", "config.yaml", "--output-dir", "run", *options, cwd=top)
    assert done.returncode == 0, done.stderr
    return top


@pytest.mark.parametrize("unit", ["clip", "video"])
def test_an_estimate_alone_attacks_nothing_and_the_same_command_continues(run, unit):
    command = ["--checkpoint", "run", f"eval.unit={unit}", f"eval.name={unit}"]
    done = tool("test_net", *command, "--estimate", cwd=run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("attacks: ") and " on this machine" in done.stdout
    folder = run / "run/eval" / unit
    assert not (folder / "results.jsonl").exists() and not (folder / "summary.json").exists()
    done = tool("test_net", *command, cwd=run)
    assert done.returncode == 0, done.stderr
    assert "on this machine" not in done.stderr  # it takes less than a minute
    assert (folder / "summary.json").is_file()


def test_a_long_evaluation_says_what_it_will_cost_and_has_the_same_rows(run, monkeypatch):
    command = ["--checkpoint", "run", "eval.unit=clip"]
    assert tool("test_net", *command, "eval.name=short", cwd=run).returncode == 0
    # the package exports a function of the name of this module
    module = importlib.import_module("vidrobust.evaluation.evaluate")
    monkeypatch.setattr(module, "LEAST_S", 0.0)
    done = tool("test_net", *command, "eval.name=long", cwd=run)
    lines = [line for line in done.stderr.splitlines() if "on this machine" in line]
    assert len(lines) == 1 and "attacks: " in lines[0]
    short, long = (run / f"run/eval/{name}/results.jsonl" for name in ("short", "long"))
    assert short.read_bytes() == long.read_bytes()


def test_an_estimate_that_fails_does_not_end_the_evaluation(run, monkeypatch):
    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory\x1b. Tried much.\nSee the manual.")

    module = importlib.import_module("vidrobust.evaluation.evaluate")
    monkeypatch.setattr(module, "estimate_attacks", out_of_memory)
    command = ["--checkpoint", "run", "eval.unit=clip", "eval.name=unknown"]
    done = tool("test_net", *command, "--estimate", cwd=run)
    assert done.returncode == 1 and "cost of the attacks cannot be measured: CUDA" in done.stderr
    done = tool("test_net", *command, cwd=run)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "cost unknown" in line]
    assert line.endswith("attacks: cost unknown: CUDA out of memory\\x1b. Tried much.")
    assert "See the manual" not in done.stderr


def test_an_estimate_of_what_trains_or_attacks_no_classifier_is_refused(run):
    features = ["protocol.name=retrieval", "eval.name=retrieval"]
    trains = ["protocol.name=finetune"]
    for words in (trains, features, ["--report-only"], ["protocol.splits=[1]"]):
        done = tool("test_net", "--checkpoint", "run", "--estimate", *words, cwd=run)
        assert done.returncode == 1 and "--estimate: " in done.stderr
    assert not (run / "run/eval/retrieval").exists()
