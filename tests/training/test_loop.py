import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.helpers import REPO, tiny, tiny_ucf101, tool
from tests.processes import ENV, TWO_RANKS, Process, run
from tests.training.helpers import equal, tiny_config, train_state
from vidrobust import checkpoint, config
from vidrobust.data import TrainBatches, ucf101
from vidrobust.models import fast_passes
from vidrobust.training.loop import NonFinite, train
from vidrobust.training.setup import total_steps
from vidrobust.utils.errors import UserError

ADV = ["method.adversary.name=clae", "method.adversary.threats=[linf-4/255]"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize("words", [ADV, ["method.name=supervised"]], ids=["clae", "supervised"])
def test_resume_in_mid_epoch_is_bitwise(ucf, tmp_path, words, optimizer):
    """4 steps equal 3 + resume + 1; an epoch has 2."""
    cfg = tiny_config(
        ucf, *words, f"optim.name={optimizer}", "train.checkpoint_every=1", "train.keep=9"
    )
    whole = train_state(cfg, tmp_path / "whole")
    resumed = train_state(
        cfg, tmp_path / "resumed", tmp_path / "whole/checkpoints/step_00000003.pt"
    )
    assert whole["step"] == resumed["step"] == 4
    for key in whole:
        assert equal(whole[key], resumed[key]), key
    assert (tmp_path / "whole/backbone.pt").read_bytes() == (
        tmp_path / "resumed/backbone.pt"
    ).read_bytes()


def test_the_run_leaves_what_the_design_says(ucf, tmp_path):
    cfg = tiny_config(ucf, *ADV, "train.checkpoint_every=1")
    state = train_state(cfg, tmp_path)
    assert set(state) == {
        "format",
        "method_revision",
        "step",
        "bf16",
        "epoch",
        "model",
        "method",
        "optimizer",
        "rng",
        "config",
        "manifest_sha",
        "bad_videos",
        "ranks",
    }
    assert config.loads(state["config"]) == cfg == config.load(tmp_path / "config.yaml")
    assert json.loads((tmp_path / "env.json").read_text())["torch"] == torch.__version__
    rows = [json.loads(line) for line in open(tmp_path / "metrics.jsonl")]
    assert [r["step"] for r in rows] == [0, 1, 2, 3] and [r["epoch"] for r in rows] == [0, 0, 1, 1]
    assert {
        "loss",
        "loss_clean",
        "loss_adv",
        "lr",
        "data_s",
        "step_s",
        "grad_norm",
        "split",
    } <= rows[0].keys()
    assert "step 4/4  loss" in (tmp_path / "log.txt").read_text()
    assert list((tmp_path / "tensorboard").glob("events*"))
    trunk = torch.load(tmp_path / "backbone.pt", weights_only=True)
    assert trunk and not any("branches" in key for key in trunk)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["last.pt", "step_00000003.pt", "step_00000004.pt"]


def test_workers_do_not_change_the_weights(ucf, tmp_path):
    a, b = (train_state(tiny_config(ucf, f"data.workers={n}"), tmp_path / str(n)) for n in (0, 2))
    assert equal(a["model"], b["model"])


def test_a_resumed_run_logs_each_step_once(ucf, tmp_path):
    cfg = tiny_config(ucf, "train.checkpoint_every=2", "train.keep=9")
    train_state(cfg, tmp_path)
    train_state(cfg, tmp_path, tmp_path / "checkpoints/step_00000002.pt")
    assert [json.loads(line)["step"] for line in open(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]


def test_pretrained_trunk_weights_are_where_training_starts(ucf, tmp_path):
    train_state(tiny_config(ucf), tmp_path / "first")
    cfg = tiny_config(
        ucf,
        f"model.weights={tmp_path / 'first/backbone.pt'}",
        "optim.lr=1e-30",
        "train.max_steps=1",
        *ADV,
    )
    state = train_state(cfg, tmp_path / "second")
    trunk = torch.load(tmp_path / "first/backbone.pt", weights_only=True)
    for key, value in trunk.items():
        if "running" not in key and "tracked" not in key:
            for name in (key, key.rpartition(".")[0] + ".branches.adv." + key.rpartition(".")[2]):
                found = state["model"].get(f"backbone.trunk.{name}")
                assert found is None or torch.equal(found, value)


def test_bf16_trains(ucf, tmp_path):
    state = train_state(tiny_config(ucf, "train.amp=bf16", *ADV), tmp_path)
    assert all(torch.isfinite(v).all() for v in state["model"].values())
    assert state["model"]["head.0.weight"].dtype == torch.float32


def test_a_non_finite_loss_stops_and_leaves_the_last_good_checkpoint(ucf, tmp_path, monkeypatch):
    from vidrobust.methods import SimCLR

    whole, calls = SimCLR.forward, []

    def poisoned(self, *inputs):
        calls.append(1)
        found = whole(self, *inputs)
        return {k: v * float("nan") for k, v in found.items()} if len(calls) == 3 else found

    monkeypatch.setattr(SimCLR, "forward", poisoned)
    with pytest.raises(
        NonFinite, match=r"loss is nan at step 2; .*last good checkpoint: .*00002.pt; batch: \w+/v_"
    ) as e:
        train_state(tiny_config(ucf, "train.checkpoint_every=1"), tmp_path)
    assert (
        "\n" not in str(e.value)
        and str(e.value).count(".avi") == 3
        and str(e.value).endswith(" and 1 more")
    )
    state = checkpoint.read_checkpoint(tmp_path)
    assert state["step"] == 2 and all(torch.isfinite(v).all() for v in state["model"].values())
    assert json.loads(open(tmp_path / "metrics.jsonl").readlines()[-1])["event"] == "loss is nan"
    assert len(json.loads(open(tmp_path / "metrics.jsonl").readlines()[-1])["uids"]) == 4


def test_a_non_finite_gradient_stops_before_the_weights_move(ucf, tmp_path, monkeypatch):
    from vidrobust.methods import SimCLR

    whole = SimCLR.forward

    def steep(self, *inputs):
        found = whole(self, *inputs)
        z = self.model.head[0].weight.sum()
        return {
            "loss": found["loss"] + 0 * (z - z.detach()).sqrt()
        }  # finite, with an infinite slope

    monkeypatch.setattr(SimCLR, "forward", steep)
    with pytest.raises(NonFinite, match="gradient norm is nan at step 0.*none yet"):
        train_state(tiny_config(ucf), tmp_path)


def test_a_bad_training_video_stops_the_run_and_loses_nothing(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    cfg = tiny_config(root, "train.checkpoint_every=100", "train.epochs=3")
    victim = root / "videos/Beta/v_Beta_g02_c01.avi"
    content = victim.read_bytes()
    victim.write_bytes(content[:700])
    with pytest.raises(
        UserError,
        match=(
            r"1 of 8 training videos are bad \(train.max_bad=0.05\); the last: .*v_Beta_g02_c01.avi"
        ),
    ):
        train_state(cfg, tmp_path / "out")
    saved = list((tmp_path / "out").glob("checkpoints/step_*.pt"))
    victim.write_bytes(content)
    state = train_state(cfg, tmp_path / "out", saved[0] if saved else None)
    assert state["step"] == 6
    assert equal(state["model"], train_state(cfg, tmp_path / "clean")["model"])


def test_resume_refuses_another_list_or_architecture(ucf, tmp_path):
    train_state(tiny_config(ucf), tmp_path / "a")
    other = tiny_ucf101(tmp_path / "other", ("Gamma", "Delta"))
    with pytest.raises(UserError, match="another list of videos"):
        train_state(tiny_config(other), tmp_path / "b", tmp_path / "a")
    for word in (
        "model.width=8",
        "optim.name=adamw",
        "method.name=supervised",
        "method.adversary.name=clae",
    ):
        with pytest.raises(UserError, match=f"a resume cannot change {word}"):
            train_state(tiny_config(ucf, word), tmp_path / "b", tmp_path / "a")


def test_a_resume_takes_the_new_options_of_the_optimizer(ucf, tmp_path):
    train_state(tiny_config(ucf), tmp_path / "a")
    words = ["train.epochs=3", "optim.weight_decay=0.5", "optim.momentum=0.1"]
    groups = train_state(tiny_config(ucf, *words), tmp_path / "a", tmp_path / "a")["optimizer"][
        "param_groups"
    ]
    assert [g["weight_decay"] for g in groups] == [0.5, 0] and [g["momentum"] for g in groups] == [
        0.1,
        0.1,
    ]
    assert "optim.weight_decay=0.5 (0.0001)" in (tmp_path / "a/log.txt").read_text()


@pytest.mark.parametrize("before", ["fp32", "bf16"])
def test_a_resume_in_another_precision_says_so(ucf, tmp_path, monkeypatch, before):
    """Another CPU may have other instructions, and earlier revisions had no bf16 on CPUs."""
    for name, cpu_has_it in (("a", before == "bf16"), ("b", before != "bf16")):
        monkeypatch.setattr(fast_passes, "multiplies_bf16", lambda has=cpu_has_it: has)
        cfg = tiny_config(ucf, "train.amp=auto", "train.checkpoint_every=1", "train.keep=9")
        start = None if name == "a" else tmp_path / "a/checkpoints/step_00000003.pt"
        train_state(cfg, tmp_path / name, start)
    first, second = ((tmp_path / name / "log.txt").read_text() for name in "ab")
    after = "fp32" if before == "bf16" else "bf16"
    assert "was trained in" not in first
    assert f"was trained in {before}, and this computes in {after};" in second
    assert f"train.amp={before} is as before" in second


def test_a_resume_from_an_older_step_drops_what_came_after(ucf, tmp_path):
    cfg = tiny_config(ucf, "train.checkpoint_every=1")
    whole = train_state(cfg, tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "last.pt",
        "step_00000003.pt",
        "step_00000004.pt",
    ]
    shutil.copy(
        tmp_path / "checkpoints/step_00000003.pt", tmp_path / "checkpoints/step_00000002.pt"
    )
    longer = tiny_config(ucf, "train.checkpoint_every=1", "train.max_steps=3")
    state = train_state(longer, tmp_path, tmp_path / "checkpoints/step_00000003.pt")
    assert state["step"] == 3 and whole["step"] == 4  # complete at once, and last.pt says so
    assert (
        sorted(p.name for p in (tmp_path / "checkpoints").glob("step*"))[-1] == "step_00000003.pt"
    )


def test_a_completed_run_can_be_resumed_into_another_folder(ucf, tmp_path):
    whole = train_state(tiny_config(ucf), tmp_path / "a")
    assert equal(
        whole["model"], train_state(tiny_config(ucf), tmp_path / "b", tmp_path / "a")["model"]
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_video_is_replaced_counted_and_said_once(tmp_path, workers):
    root = tiny_ucf101(tmp_path / "data")
    (root / "videos/Beta/v_Beta_g02_c01.avi").write_bytes(b"")
    words = ["train.log_every=3", "train.max_bad=0.2", f"data.workers={workers}"]
    state = train_state(tiny_config(root, *words), tmp_path / "out")
    rows = [json.loads(line) for line in open(tmp_path / "out/metrics.jsonl")]
    assert (
        sum(row["failed_reads"] for row in rows) >= 2
    )  # once an epoch, and whenever it is to replace itself
    assert rows[-1]["bad_videos"] == 1
    assert (tmp_path / "out/log.txt").read_text().count(
        "v_Beta_g02_c01.avi: the file is empty"
    ) == 1
    assert equal(
        state["model"],
        train_state(tiny_config(root, *words[:2], "data.workers=1"), tmp_path / "again")["model"],
    )


def test_a_resumed_run_remembers_its_bad_videos(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    for n in (1, 2, 3):
        (root / f"videos/Beta/v_Beta_g{n:02d}_c01.avi").write_bytes(b"")
    words = ["train.log_every=1", "train.max_bad=0.5", "train.epochs=4"]
    train_state(tiny_config(root, *words), tmp_path / "whole")
    counts = [json.loads(line)["bad_videos"] for line in open(tmp_path / "whole/metrics.jsonl")]
    train_state(tiny_config(root, *words, "train.max_steps=4"), tmp_path / "part")
    train_state(tiny_config(root, *words), tmp_path / "part", tmp_path / "part")
    assert [
        json.loads(line)["bad_videos"] for line in open(tmp_path / "part/metrics.jsonl")
    ] == counts
    assert counts[-1] == 3 and len(counts) == 8
    with pytest.raises(
        UserError, match="3 of 8 training videos are bad"
    ):  # known before the first step
        words = ["train.log_every=1", "train.max_bad=0.2", "train.epochs=5"]
        train_state(tiny_config(root, *words), tmp_path / "less", tmp_path / "whole")


@pytest.mark.parametrize(
    "words",
    [["data.backend=torchcodec"], ["data.sampling=interval_uniform", "method.name=supervised"]],
)
def test_a_start_that_fails_in_the_data_deletes_nothing(ucf, tmp_path, words, monkeypatch):
    train_state(tiny_config(ucf), tmp_path / "out")
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(UserError, match="does not import|draws pairs of clips"):
        train(tiny_config(ucf, *words), tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/checkpoints/last.pt").is_file() and (
        tmp_path / "out/backbone.pt"
    ).is_file()


def test_batches_larger_than_the_data_set_are_refused(ucf):
    with pytest.raises(
        UserError, match=r"train.batch_size=9 is larger than the data set \(8 videos\)"
    ):
        total_steps(tiny_config(ucf, "train.batch_size=9"), 8)
    assert (
        total_steps(tiny_config(ucf), 8) == 4
        and total_steps(tiny_config(ucf, "train.max_steps=3"), 8) == 3
    )


def _start(ucf, out, *words):
    options = tiny(
        f"data.root={ucf}",
        "eval.enabled=false",
        "train.epochs=15",
        "train.checkpoint_every=5",
        "data.workers=1",
        *ADV,
        # at 0.1 a network this small collapses within 80 steps, on some processors to NaN
        "optim.lr=0.01",
    )
    changed = {word.split("=")[0] for word in words}
    options = [option for option in options if option.split("=")[0] not in changed] + list(words)
    page = out.parent / "page.yaml"
    command = [REPO / "tools/train_net.py", "--cfg", page, "--output-dir", out, "--resume"]
    return Process([*command, *options], cwd=out.parent)


def _wait_for(path, process):
    end = time.time() + 120
    while not path.exists():
        assert process.poll() is None and time.time() < end, process.stderr.read()
        time.sleep(0.02)


def test_killed_and_resumed_it_ends_with_the_same_bits(ucf, tmp_path):
    (tmp_path / "page.yaml").write_text("seed: 5")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = _start(ucf, whole)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    process = _start(ucf, killed)
    _wait_for(killed / "checkpoints/step_00000010.pt", process)
    process.kill()
    process.wait()
    assert checkpoint.read_checkpoint(killed)["step"] < 30
    # in a new Python process, as a user resumes it: also another hash seed gives the same bits
    resumed = [sys.executable, *process.args]
    subprocess.run(resumed, env=ENV, timeout=300, check=True)
    assert equal(*(checkpoint.read_checkpoint(d) for d in (whole, killed)))
    steps = [
        [json.loads(line)["step"] for line in open(d / "metrics.jsonl")] for d in (whole, killed)
    ]
    assert steps[0] == steps[1] == list(range(30))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_writes_a_checkpoint_and_says_so(ucf, tmp_path, number):
    (tmp_path / "page.yaml").write_text("seed: 5")
    process = _start(ucf, tmp_path / "out", "train.epochs=4000", "train.checkpoint_every=4")
    _wait_for(tmp_path / "out/checkpoints/last.pt", process)
    process.send_signal(number)
    assert process.wait(60) == 130
    message = process.stderr.read().strip().splitlines()[-1]
    assert message.startswith("stopped: after step") and "--resume continues" in message
    step = int(message.split("after step ")[1].split()[0])
    assert checkpoint.read_checkpoint(tmp_path / "out")["step"] == step


def _two_ranks(*words):
    script = REPO / "tools/train_net.py"
    command = [*TWO_RANKS, script, "--cfg", "page.yaml", "--output-dir", "out", *tiny(*words)]
    return [str(word) for word in command]


def test_a_bad_video_on_one_rank_stops_both_after_a_checkpoint(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    (tmp_path / "page.yaml").write_text("seed: 5")
    keys = next(
        iter(TrainBatches(8, 4, 5, 1, 2, rank=1, world=2))
    )  # what rank 1 reads in the second step
    (root / "videos" / ucf101(root, "train", 1)[0][keys[0][1]].uid).write_bytes(b"")
    command = _two_ranks(f"data.root={root}", "device=cpu", "eval.enabled=false", "train.epochs=1")
    done = run(command, cwd=tmp_path)
    assert done.returncode != 0 and "1 of 8 training videos are bad" in done.stderr
    assert "vidrobust/engine" not in done.stderr  # no traceback of ours; torchrun prints its own
    assert checkpoint.read_checkpoint(tmp_path / "out")["step"] == 1
    assert (
        "the file is empty" in (tmp_path / "out/log.txt").read_text()
    )  # though another rank read it


def test_two_ranks_train_and_one_measures(ucf, tmp_path):
    """The documented torchrun command, on gloo."""
    (tmp_path / "page.yaml").write_text("seed: 5")
    command = [sys.executable, *_two_ranks(f"data.root={ucf}", "device=cpu", *ADV)]
    done = subprocess.run(
        command, cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/eval/pgd/summary.json").read_text())["n"] == 4
    assert len(open(tmp_path / "out/metrics.jsonl").readlines()) == 4


def test_dry_run_and_help_need_no_data(tmp_path):
    page = REPO / "configs/ucf101_csl_adv.yaml"
    done = tool("train_net", "--cfg", page, "--dry-run", "seed=9", cwd=tmp_path)
    assert (
        done.returncode == 0
        and config.loads(done.stdout).seed == 9
        and not list(tmp_path.iterdir())
    )
    shown = tool("train_net", "--help", cwd=tmp_path)
    assert (
        shown.returncode == 0
        and "optim.warmup=0.1" in shown.stdout
        and "--overwrite" in shown.stdout
    )


def test_videos_that_are_too_short_are_counted_once(tmp_path):
    """A clip of 400 frames of a video of 40 repeated frames without a word."""
    root = tiny_ucf101(tmp_path / "data")  # videos of 20 frames
    words = [f"data.root={root}", "data.frames=12", "data.stride=2", "train.epochs=2"]
    cfg = config.loads("", tiny(*words))
    train(cfg, tmp_path / "run")
    lines = [
        line for line in (tmp_path / "run/log.txt").read_text().splitlines() if "shorter" in line
    ]
    assert (
        len(lines) == 1
        and "8 of 8 videos are shorter than a clip (23 frames) and show frames twice" in lines[0]
    )
