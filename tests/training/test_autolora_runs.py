"""Runs of AutoLoRa: measurements, rate and best weights over resumes, kills and ranks."""

import json
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.helpers import REPO, tiny, tiny_ucf101
from tests.processes import Process, run
from tests.training.helpers import equal, tiny_config, train_state, two_ranks
from vidrobust import checkpoint
from vidrobust.checkpoint import NonFinite
from vidrobust.models import build_backbone
from vidrobust.training import loop, measured_accuracy
from vidrobust.training.measured_accuracy import Measured
from vidrobust.utils.errors import UserError

LORA = [
    "method.name=supervised",
    "method.adversary.name=autolora",
    "method.adversary.rank=2",
    "method.adversary.steps=1",
    "model.head_scale=0.1",
    "optim.lr=0.05",
    "optim.warmup=0",
    "optim.schedule=auto",
    "optim.milestones=[1/4,2/4,3/4]",
    "optim.gamma=0.5",
    "train.epochs=4",
    "train.checkpoint_every=1",
    "train.keep=20",
]
PER_EPOCH = 2  # 8 videos in batches of 4
ATTACKED = [1, 4, 2, 3]  # videos of 8 that are right under attack after each epoch, where given


@pytest.fixture(scope="module")
def whole(ucf, tmp_path_factory):
    """A run that nothing interrupts, and its last checkpoint."""
    out = tmp_path_factory.mktemp("whole")
    return out, train_state(tiny_config(ucf, *LORA), out)


def lora(*words):
    """Return the options LORA with others, which replace those of the same keys."""
    keys = {word.split("=")[0] for word in words}
    return [*(word for word in LORA if word.split("=")[0] not in keys), *words]


def read(out, step):
    return checkpoint.read_checkpoint(out / f"checkpoints/step_{step:08d}.pt")


def epoch_rows(out):
    """Return the numbers that were logged for each epoch."""
    rows = [json.loads(line) for line in open(out / "metrics.jsonl")]
    return [row for row in rows if row["split"] == "train_epoch"]


def assert_same_end(state, other):
    assert state.keys() == other.keys()
    for key in state:
        assert equal(state[key], other[key]), key


@pytest.mark.parametrize("step", [3, 6])
def test_a_run_is_resumed_bitwise_within_and_between_epochs(ucf, tmp_path, whole, step):
    out, state = whole
    cfg = tiny_config(ucf, *LORA)
    resumed = train_state(cfg, tmp_path, out / f"checkpoints/step_{step:08d}.pt")
    assert_same_end(state, resumed)


def train_with_given_accuracies(out, cfg):
    """Train, with the second of the accuracies under attack as the best; return the last state.

    The accuracy for the loss is that of 1, 2, 3 and 4 of 8 videos in the four epochs.
    """
    attacked = iter(ATTACKED)

    def measure(run, dataset, judge, epoch=0, *, augmented=False):
        return Measured(epoch + 1 if augmented else next(attacked), 8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured_accuracy, "_measure", measure)
        return train_state(cfg, out)


@pytest.fixture(scope="module")
def given(ucf, tmp_path_factory):
    """A run with given accuracies, and its last checkpoint."""
    out = tmp_path_factory.mktemp("given")
    return out, train_with_given_accuracies(out, tiny_config(ucf, *LORA))


def test_a_run_ends_with_its_best_weights(given):
    out, state = given
    assert state["auto_rate"]["accuracies"] == [0.125, 0.5, 0.25, 0.375]
    # after the second epoch the weights were neither loaded nor changed
    assert equal(read(out, 2 * PER_EPOCH)["model"], state["model"])
    best = state["auto_rate"]["best"]
    assert all(torch.equal(value, best[f"model.{key}"]) for key, value in state["model"].items())


def test_training_goes_back_to_the_best_weights_where_the_rate_is_reduced(given):
    out, state = given
    # checkpoints 1, 2 and 3 are judged after epochs 2, 3 and 4: it increases, decays, increases
    assert state["auto_rate"]["factor"] == 0.25
    assert equal(read(out, 3 * PER_EPOCH)["model"], read(out, 2 * PER_EPOCH)["model"])


def test_rates_and_accuracies_are_logged(given):
    out, _ = given
    rows = [json.loads(line) for line in open(out / "metrics.jsonl")]
    epochs = epoch_rows(out)
    steps = [row for row in rows if row["split"] == "train"]
    assert [row["attacked_accuracy"] for row in epochs] == [0.125, 0.5, 0.25, 0.375]
    assert [row["rate_factor"] for row in epochs] == [1, 1, 0.5, 0.25]
    assert [row["lr"] for row in steps] == pytest.approx([0.05] * 6 + [0.025] * 2)
    # passes of a step, without those of the measurements
    assert all((row["forward"], row["backward"]) == (3, 3) for row in steps)
    assert "back to the weights after epoch 1, with 50.0%" in (out / "log.txt").read_text()


def test_the_logged_accuracy_of_the_branch_is_that_of_the_epoch(given):
    """Also where training goes back to weights of an earlier epoch."""
    rows = epoch_rows(given[0])
    assert [row["branch_accuracy"] for row in rows] == [0.125, 0.25, 0.375, 0.5]


def test_going_back_keeps_the_budgets_of_an_adaptive_schedule(ucf, tmp_path):
    cfg = tiny_config(ucf, *LORA, "method.adversary.schedule=adaptive")
    train_with_given_accuracies(tmp_path, cfg)
    best, gone_back = (read(tmp_path, epochs * PER_EPOCH) for epochs in (2, 3))
    assert equal(best["model"], gone_back["model"])
    # the budgets are updated after each tenth of the run: steps 3 and 5 of 8 are in these parts
    assert int(best["method"]["adversary.budget.part"]) == 3
    assert int(gone_back["method"]["adversary.budget.part"]) == 6


def test_the_backbone_loads_anywhere_and_the_branch_is_in_checkpoints(whole):
    out, state = whole
    weights = torch.load(out / "backbone.pt", weights_only=True)
    build_backbone("r2plus1d_10", width=4).stored.load_state_dict(weights)
    branch = [value for key, value in state["method"].items() if key.startswith("branch.b.")]
    assert branch and all(value.any() for value in branch)


@pytest.mark.parametrize("name", ["adapt_rate", "measure_for_loss"])
def test_a_measurement_that_fails_costs_no_bit(ucf, tmp_path, whole, monkeypatch, name):
    cfg = tiny_config(ucf, *LORA)
    measure = getattr(loop, name)

    def fails(run, step):
        if step == 4:
            raise RuntimeError("out of memory")
        return measure(run, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, name, fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            train_state(cfg, tmp_path)
    # a step whose consequences are not decided is not saved
    last = checkpoint.read_checkpoint(tmp_path)["step"]
    assert last == (3 if name == "adapt_rate" else 4)
    resumed = train_state(cfg, tmp_path, tmp_path / "checkpoints/last.pt")
    assert_same_end(whole[1], resumed)


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_weights(ucf, tmp_path, whole):
    (tmp_path / "config.yaml").write_text(f"data: {{root: {ucf}}}")
    command = [REPO / "tools/train_net.py", "--cfg", "config.yaml", "--output-dir", "out"]
    command += ["--resume", *tiny("eval.enabled=false", "device=cpu", *LORA)]
    process = Process(command, cwd=tmp_path)
    end = time.time() + 120
    while not (tmp_path / "out/checkpoints/step_00000003.pt").exists():
        assert process.poll() is None and time.time() < end
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert run(command, cwd=tmp_path).returncode == 0
    ended = checkpoint.read_checkpoint(tmp_path / "out")
    for key in ("model", "method", "optimizer", "auto_rate", "rng"):
        assert equal(ended[key], whole[1][key]), key


@pytest.mark.slow
def test_two_ranks_share_the_measurements(ucf, tmp_path):
    state = two_ranks(tmp_path, f"data.root={ucf}", *LORA, "eval.batch_size=2")
    assert state["step"] == 8
    # over both ranks; 16 if each measured all videos
    assert [row["attacked_videos"] for row in epoch_rows(tmp_path / "out")] == [8] * 4


def test_ranks_together_measure_what_one_process_does(ucf, tmp_path, monkeypatch):
    """Each takes every second batch; random starts are those of the batch."""
    cfg = tiny_config(ucf, *LORA, "eval.batch_size=3")
    training = loop.build_run(cfg, tmp_path, torch.device("cpu"), None)
    counts = {}

    def measure(rank, world):
        ranks = SimpleNamespace(
            rank=lambda: rank,
            world=lambda: world,
            together=nullcontext,
            broadcast=list,
            gather=lambda own: counts.setdefault((rank, world), own),
        )
        monkeypatch.setattr(measured_accuracy, "distributed", ranks)
        measured_accuracy.adapt_rate(training, PER_EPOCH)

    for rank, world in ((0, 1), (0, 2), (1, 2)):
        measure(rank, world)
    assert counts[0, 1][0, 1] == 8
    assert counts[0, 2][0, 1] == 5
    assert torch.equal(counts[0, 1], counts[0, 2] + counts[1, 2])


def test_the_weights_of_the_loss_change_when_they_do_in_the_released_code(monkeypatch):
    """At the start of an epoch and after the batches 0, n // 4, 2 (n // 4), ...

    The network that is measured is another one: docs/fidelity.md.
    """
    due = []

    def measure(run, dataset, *_, **__):
        assert not dataset.views  # the views are made from the clips that are measured
        return Measured(1, 2)

    monkeypatch.setattr(measured_accuracy, "_measure", measure)
    for n in (1, 2, 4, 9, 12):
        method = SimpleNamespace(network_to_measure=lambda: nn.Identity())
        training = SimpleNamespace(method=method, per_epoch=n, dataset=SimpleNamespace(views=True))
        for step in range(2 * n):
            method.record_accuracy = lambda value, n=n, step=step: due.append((n, step))
            measured_accuracy.measure_for_loss(training, step)
        expected = set()
        for epoch in (0, 1):
            expected.add(n * epoch)
            expected |= {n * epoch + b + 1 for b in range(n) if b % max(1, n // 4) == 0}
        assert [step for size, step in due if size == n] == sorted(expected - {2 * n})


def test_measurements_take_part_of_the_videos(ucf, tmp_path, monkeypatch):
    counts = []
    judge = measured_accuracy._withstands

    def counted(run, done, clips, labels, number):
        counts.append(len(clips))
        return judge(run, done, clips, labels, number)

    monkeypatch.setattr(measured_accuracy, "_withstands", counted)
    words = lora("train.epochs=1", "train.measured=5", "eval.batch_size=3")
    train_state(tiny_config(ucf, *words), tmp_path)
    assert counts == [3, 2]


def test_accuracies_are_those_of_the_videos_that_decode(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    (root / "videos/Beta/v_Beta_g02_c01.avi").write_bytes(b"nothing")
    words = ["train.max_bad=0.5", "train.amp=bf16", "data.workers=1"]
    train_state(tiny_config(root, *LORA, *words), tmp_path)
    assert [row["attacked_videos"] for row in epoch_rows(tmp_path)] == [7] * 4


def test_a_run_of_autolora_that_diverges_says_so(ucf, tmp_path):
    with pytest.raises(NonFinite, match="at step [123]; .* batch: "):
        train_state(tiny_config(ucf, *lora("optim.lr=1e30")), tmp_path)


@pytest.mark.parametrize(
    ("words", "threats"),
    [
        ([], [("linf", 8 / 255, "clean")]),
        (["optim.auto_threats=[l2-0.5]"], [("l2", 0.5, "clean")]),
        (
            ["method.adversary.threats=[linf-0.1,l2-1]", "method.adversary.combine=branches"],
            [("linf", 0.1, "adv"), ("l2", 1, "adv2")],
        ),
        (
            ["method.adversary.threats=[linf-0.1,l2-1]"],
            [("linf", 0.1, "clean"), ("l2", 1, "clean")],
        ),
    ],
)
def test_accuracy_is_measured_under_the_threats_of_training(ucf, tmp_path, words, threats):
    cfg = tiny_config(ucf, *LORA, *words)
    training = loop.build_run(cfg, tmp_path, torch.device("cpu"), None)
    measured = measured_accuracy.measured_threats(training)
    assert [(threat.norm, threat.eps, branch) for threat, branch in measured] == threats


def test_the_rate_alone_serves_linear_finetuning_of_clean_clips(ucf, tmp_path):
    words = [word for word in LORA if "adversary" not in word]
    cfg = tiny_config(ucf, *words, "method.freeze=true", "optim.auto_threats=[linf-1/255]")
    state = train_state(cfg, tmp_path)
    assert len(state["auto_rate"]["accuracies"]) == 4


class Scripted(nn.Module):
    """A network with weights that TorchScript holds."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 1)

    def forward(self, x):
        return self.conv(x).mean((2, 3, 4))


def test_a_network_that_has_no_branch_is_refused_before_anything_is_written(ucf, tmp_path):
    torch.jit.script(Scripted()).save(str(tmp_path / "net.pt"))
    words = [*LORA, f"model.backbone=torchscript:{tmp_path / 'net.pt'}", "model.width=0"]
    words += ["model.input.frames=2", "model.input.size=[16,16]"]
    with pytest.raises(UserError, match="no stages with convolutions") as refused:
        train_state(tiny_config(ucf, *words), tmp_path / "out")
    assert len(str(refused.value).splitlines()) == 1
    assert not any((tmp_path / "out").iterdir())


def test_a_resume_cannot_begin_the_schedule(ucf, tmp_path):
    words = lora("optim.schedule=constant", "train.epochs=1")
    train_state(tiny_config(ucf, *words), tmp_path / "other")
    with pytest.raises(UserError, match=r"cannot change optim.schedule=auto \(constant\)"):
        train_state(tiny_config(ucf, *LORA), tmp_path / "out", tmp_path / "other")


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("optim.schedule=constant", "optim.schedule"),
        ("method.adversary.rank=4", "method.adversary.rank"),
        ("train.measured=5", "train.measured"),
        ("optim.auto_threats=[l2-0.5]", "optim.auto_threats"),
        ("method.adversary.threats=[l2-0.5]", "method.adversary.threats"),
    ],
)
def test_a_resume_cannot_change_what_accuracies_depend_on(ucf, tmp_path, whole, word, key):
    last = whole[0] / "checkpoints/last.pt"
    with pytest.raises(UserError, match=f"a resume cannot change {key}="):
        train_state(tiny_config(ucf, *lora(word)), tmp_path, last)


def test_a_resume_can_change_how_accuracies_decide_on_the_rate(ucf, tmp_path, whole):
    last = whole[0] / "checkpoints/last.pt"
    words = lora("optim.gamma=0.1", "optim.patience=0.5", "optim.milestones=[1/4]")
    training = loop.build_run(tiny_config(ucf, *words), tmp_path, torch.device("cpu"), last)
    assert (training.auto.gamma, training.auto.patience) == (0.1, 0.5)
    assert training.auto.checkpoints == [1]
