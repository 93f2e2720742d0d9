"""`train_net --replay`: the step that ended a run, alone."""

import json
import re

import pytest
import torch

from tests.helpers import REPO, tiny, tiny_ucf101, tool
from tests.processes import PIPE, TWO_RANKS, Process, run
from vidrobust.methods import SimCLR
from vidrobust.models import Model

OPTIONS = ["eval.enabled=false", "device=cpu", "train.checkpoint_every=1", "train.keep=9"]
CLAE = ["method.adversary.name=clae", "method.adversary.threats=[linf-4/255]"]
RECOMPUTED = ["train.micro_batch=2", "train.checkpoint_activations=true"]
NO_LOSS = "method.temperature=1e-40"  # similarities overflow: inf - inf


def _train(top, root, *words):
    (top / "page.yaml").write_text("")
    command = ["train_net", "--cfg", "page.yaml", "--output-dir", "out"]
    return tool(*command, *tiny(f"data.root={root}", *OPTIONS, *words), cwd=top)


def _replay(top, path="out", *words):
    return tool("train_net", "--replay", path, *words, cwd=top)


def _files(folder):
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else b""
        for path in folder.rglob("*")
    }


def _spoil(path, key):
    """Write an infinite weight into a checkpoint."""
    state = torch.load(path, weights_only=True)
    state["model"][key].view(-1)[0] = float("inf")
    torch.save(state, path)


@pytest.fixture(scope="module")
def trained(ucf, tmp_path_factory):
    """Return the folder above `out`, a run of CLAE; its checkpoints are of steps 1 to 4."""
    top = tmp_path_factory.mktemp("trained")
    assert _train(top, ucf, *CLAE).returncode == 0
    return top


@pytest.mark.parametrize("words", [[], RECOMPUTED], ids=["whole", "recomputed"])
@pytest.mark.parametrize(
    ("branch", "where"),
    [
        ("adv", "attack, pass 1 through model.backbone (norm branch adv, train mode) of view 1"),
        (
            "clean",
            "learned pass, pass 1 through model.backbone (norm branch clean, train mode) of view 1",
        ),
    ],
)
def test_the_module_with_an_infinite_weight_is_named(trained, tmp_path, branch, where, words):
    source = trained / "out/checkpoints/step_00000002.pt"
    path = tmp_path / "spoilt.pt"
    path.write_bytes(source.read_bytes())
    module = f"backbone.trunk.1.conv1.0.1.branches.{branch}"
    _spoil(path, f"{module}.weight")
    done = _replay(tmp_path, path, *words)
    assert done.returncode == 0, done.stderr
    assert f"first output that is not finite: model.{module} (BatchNorm3d)" in done.stdout
    assert f"in: {where}" in done.stdout
    assert re.search(r"  weight: \d+ float32, 1 of \d+ values not finite", done.stdout)


def test_only_a_pass_of_an_attack_is_called_one(trained, tmp_path):
    path = tmp_path / "spoilt.pt"
    path.write_bytes((trained / "out/checkpoints/step_00000002.pt").read_bytes())
    _spoil(path, "head.0.weight")
    done = _replay(tmp_path, path)
    assert "not finite: model.head.0 (Linear)\n  in: learned pass, pass 1 " in done.stdout


def test_a_run_that_diverges_is_replayed_and_stays_as_it_is(ucf, tmp_path):
    ended = _train(tmp_path, ucf, "optim.lr=1e18")
    assert "`train_net.py --replay out` names the module" in ended.stderr
    step = int(re.search(r"at step (\d+)", ended.stderr)[1])
    before = _files(tmp_path)
    done = _replay(tmp_path)
    assert _files(tmp_path) == before
    assert done.returncode == 0, done.stderr
    assert f"step {step} of 4, epoch {step // 2}: fp32 on cpu" in done.stdout
    assert "in the run: loss is nan" in done.stdout
    assert re.search(r"first output that is not finite: model\.\S+ \(\w+\)", done.stdout)


def test_a_loss_of_finite_outputs_is_named_in_the_first_step(ucf, tmp_path):
    assert "at step 0" in _train(tmp_path, ucf, NO_LOSS).stderr
    done = _replay(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "first output that is not finite: the loss itself" in done.stdout
    assert "parts that are not finite: loss" in done.stdout


@pytest.mark.parametrize("words", [[], RECOMPUTED], ids=["whole", "recomputed"])
def test_a_finite_step_has_the_loss_of_the_run_and_a_status_of_its_own(ucf, tmp_path, words):
    assert _train(tmp_path, ucf, *CLAE, *words, "seed=3").returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").open()]
    loss = next(row["loss"] for row in rows if row["step"] == 2 and "loss" in row)
    done = _replay(tmp_path, "out/checkpoints/step_00000002.pt")
    assert done.returncode == 4, done.stderr
    assert f"result: loss {loss:.6g}, " in done.stdout
    assert "not reproduced: loss and gradient are finite here" in done.stdout


def test_options_that_differ_from_the_run_are_listed(ucf, tmp_path):
    assert "at step 1" in _train(tmp_path, ucf, "optim.lr=1e18", "optim.clip_norm=0").stderr
    done = _replay(tmp_path, "out", "method.temperature=0.25")
    assert done.returncode == 0
    assert "differ from the checkpoint's, in brackets: method.temperature=0.25" in done.stderr


def test_a_weight_is_named_whose_gradient_alone_is_not_finite(ucf, tmp_path, monkeypatch):
    whole = SimCLR.forward

    def steep(self, *inputs):
        parts = whole(self, *inputs)
        z = self.model.head[0].weight.sum()
        return {"loss": parts["loss"] + 0 * (z - z.detach()).sqrt()}  # an infinite slope

    monkeypatch.setattr(SimCLR, "forward", steep)
    _train(tmp_path, ucf)
    done = _replay(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "first gradient of a weight that is not finite: model.head.0.weight" in done.stdout
    assert "first output" not in done.stdout


def test_the_place_of_a_gradient_between_modules_is_named(ucf, tmp_path, monkeypatch):
    whole = Model.forward

    def steep(self, x):
        z = whole(self, x)
        return z + 0 * (z - z.detach()).sqrt()

    monkeypatch.setattr(Model, "forward", steep)
    _train(tmp_path, ucf)
    done = _replay(tmp_path)
    assert re.search(
        r"first gradient that is not finite: at the output of model\.head\.\d+ \(\w+\)\n"
        r"  in: backward pass of: learned pass, pass \d .*\n  gradient: .*\n"
        r"  last finite gradient: at the output of model \(Model\)",
        done.stdout,
    ), done.stdout


def test_a_second_update_of_a_batch_is_replayed(ucf, tmp_path, monkeypatch):
    words = ["method.name=supervised", "method.adversary.name=free", "method.adversary.replays=2"]
    _train(tmp_path, ucf, *words, "optim.lr=1e30")
    done = _replay(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "update 2 of the 2 of this batch" in done.stdout


def test_a_finished_run_has_no_step_to_replay(trained):
    done = _replay(trained)
    assert done.returncode == 1
    assert "the run was complete at step 4; no step follows it" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out/backbone.pt"], "not a training checkpoint"),
        (["out/config.yaml"], "not a checkpoint, or incomplete"),
        (["nothing.pt"], "no checkpoint nothing.pt"),
        (["out/tensorboard"], "the folder holds no run; name a checkpoint"),
        (["out", "--output-dir", "other"], "--replay writes nothing; leave it out"),
        (["out", "model.width=8"], "cannot change model.width"),
    ],
)
def test_what_cannot_be_replayed_is_one_clear_line(trained, arguments, message):
    done = _replay(trained, *arguments)
    assert done.returncode == 1
    assert message in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_without_replay_a_config_file_is_required(tmp_path):
    done = tool("train_net", cwd=tmp_path)
    assert done.returncode == 2
    assert "required: --cfg" in done.stderr


def _rewrite_row(out, **changes):
    path = out / "metrics.jsonl"
    *rows, last = path.read_text().splitlines()
    path.write_text("\n".join([*rows, json.dumps(json.loads(last) | changes)]) + "\n")


def test_data_that_has_changed_is_reported(ucf, tmp_path):
    _train(tmp_path, ucf, NO_LOSS)
    out = tmp_path / "out"
    assert "the data has changed" not in _replay(tmp_path).stdout
    _rewrite_row(out, clips_sha="0")
    done = _replay(tmp_path)
    assert "the clips of these videos have other pixels than in the run" in done.stdout
    _rewrite_row(out, uids=["gone.avi"] * 4)
    done = _replay(tmp_path)
    assert done.returncode == 1
    assert "the data has changed: the batch of the run held gone.avi" in done.stderr


def test_another_device_or_precision_explains_a_finite_step(ucf, tmp_path):
    _train(tmp_path, ucf, NO_LOSS)
    _rewrite_row(tmp_path / "out", bf16=True, device="cuda")
    done = _replay(tmp_path, "out", "method.temperature=0.5")
    assert "device=cuda in the run, cpu here, bf16=True in the run, False here" in done.stdout


def test_an_earlier_state_is_said_to_be_one(ucf, tmp_path):
    _train(tmp_path, ucf, "optim.lr=1e18")
    _rewrite_row(tmp_path / "out", step=3)
    assert "the run ended at step 3, whose state was not saved" in _replay(tmp_path).stdout


def test_names_of_videos_cannot_send_commands_to_the_terminal(tmp_path):
    root = tiny_ucf101(tmp_path / "data", classes=("Al\x1b[31mpha", "Beta"))
    _train(tmp_path, root, NO_LOSS)
    done = _replay(tmp_path)
    assert "Al\\x1b[31mpha/" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.slow
def test_a_step_of_two_ranks_needs_two(ucf, tmp_path):
    (tmp_path / "page.yaml").write_text("")
    tool_path = REPO / "tools/train_net.py"
    words = tiny(f"data.root={ucf}", *OPTIONS, NO_LOSS)
    run([*TWO_RANKS, tool_path, "--cfg", "page.yaml", "--output-dir", "out", *words], cwd=tmp_path)
    alone = _replay(tmp_path)
    assert alone.returncode == 1
    assert "the step ran on 2 ranks, and this is 1; use torchrun" in alone.stderr
    both = Process([*TWO_RANKS, tool_path, "--replay", "out"], cwd=tmp_path, stdout=PIPE)
    report, errors = both.communicate(300)
    assert both.wait() == 0, errors
    assert "fp32 on cpu, rank 0 of 2" in report
    assert report.count("first output that is not finite: the loss itself") == 1
