import subprocess
import time

import pytest
import torch

from tests.processes import DEVNULL, Process
from vidrobust import checkpoint
from vidrobust.config import ModelConfig
from vidrobust.models import add_branches, build_backbone, build_model
from vidrobust.utils.errors import UserError

STATE = dict.fromkeys(checkpoint.KEYS) | {"format": 1, "step": 3, "model": {"w": torch.ones(2)}}


def test_the_newest_checkpoints_are_kept_and_last_is_the_newest(tmp_path):
    for step in (2, 4, 6):
        checkpoint.save(tmp_path, {**STATE, "step": step}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "last.pt",
        "step_00000004.pt",
        "step_00000006.pt",
    ]
    assert checkpoint.read_checkpoint(tmp_path / "last.pt")["step"] == 6
    assert checkpoint.read_checkpoint(tmp_path)["step"] == 6


def test_an_incomplete_checkpoint_is_refused_and_an_older_one_suggested(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, {**STATE, "step": step, "model": {"w": torch.rand(5000)}}, keep=3)
    path = tmp_path / "step_00000002.pt"
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(
            UserError, match="incomplete.*use step_00000001.pt in the same folder"
        ) as caught:
            checkpoint.read_checkpoint(path)
        assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_plain_state_dict_are_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint .*nothing.pt"):
        checkpoint.read(tmp_path / "nothing.pt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "plain.pt")
    with pytest.raises(UserError, match="not a training checkpoint.*model.weights"):
        checkpoint.read_checkpoint(tmp_path / "plain.pt")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    torch.save({"format": 1, "evil": subprocess.Popen}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        checkpoint.read(tmp_path / "evil.pt")


def test_a_write_that_is_killed_leaves_a_complete_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.write_atomic(path, {"n": 0, "w": torch.rand(10)})
    code = (
        "import sys, torch; from pathlib import Path; from vidrobust.checkpoint import"
        f" write_atomic\nn = 1\nwhile True:\n    write_atomic(Path({str(path)!r}), {{'n': n, 'w':"
        " torch.full((3_000_000,), float(n))}); n += 1\n"
    )
    (tmp_path / "writer.py").write_text(code)
    for pause in (0.5, 0.9, 1.3):
        process = Process(["writer.py"], cwd=tmp_path, stderr=DEVNULL)
        while checkpoint.read(path)["n"] == 0:
            time.sleep(0.05)
        time.sleep(pause)
        process.kill()
        process.wait()
        state = checkpoint.read(path)
        assert state["n"] > 0 and (state["w"] == state["n"]).all()
        checkpoint.write_atomic(path, {"n": 0, "w": torch.rand(10)})


def test_weights_of_another_architecture_are_refused_by_prefix():
    small, large = (
        build_model(ModelConfig(backbone="r2plus1d_10", width=w, hidden=8, dim=8), "projector")
        for w in (4, 8)
    )
    with pytest.raises(
        UserError, match=r"other shape backbone.trunk.0 \(\d+\), .*check model"
    ) as caught:
        checkpoint.load_state(small, large.state_dict(), "c.pt")
    assert str(caught.value).startswith("c.pt is of another architecture") and "\n" not in str(
        caught.value
    )
    other = build_model(ModelConfig(backbone="resnet18", width=4, hidden=8, dim=8), "projector")
    with pytest.raises(
        UserError, match=r"missing backbone.trunk.bn1 \(5\).*unexpected backbone.trunk.0"
    ):
        checkpoint.load_state(other, small.state_dict(), "c.pt")


def test_weights_without_branches_fill_both_branches():
    plain = build_model(ModelConfig(backbone="r2plus1d_10", width=4, hidden=8, dim=8), "projector")
    branched = add_branches(
        build_model(ModelConfig(backbone="r2plus1d_10", width=4, hidden=8, dim=8), "projector")
    )
    checkpoint.load_state(branched, plain.state_dict(), "c.pt")
    for branch in ("clean", "adv"):
        with branched.use_branch(branch), torch.no_grad():
            x = torch.rand(2, 3, 1, 16, 16)
            assert torch.equal(branched.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(
    "prefix", ["", "module.", "module.encoder.", "backbone.trunk.", "backbone."]
)
def test_backbone_weights_are_loaded_with_the_prefixes_of_other_code(tmp_path, prefix):
    backbone = build_backbone("r2plus1d_10", width=4)
    state = {f"{prefix}{k}": v for k, v in backbone.trunk.state_dict().items()} | {
        "fc.weight": torch.ones(2)
    }
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    weights = checkpoint.backbone_state(str(tmp_path / "w.pt"))
    other = build_backbone("r2plus1d_10", width=4)
    checkpoint.load_state(other.trunk, weights, "w.pt")
    assert all(
        torch.equal(v, other.trunk.state_dict()[k]) for k, v in backbone.trunk.state_dict().items()
    )


def test_backbone_weights_of_a_plain_model_state_are_its_clean_branch(tmp_path):
    model = add_branches(
        build_model(ModelConfig(backbone="r2plus1d_10", width=4, hidden=8, dim=8), "projector")
    ).train()
    with model.use_branch("adv"):
        model(torch.rand(4, 3, 1, 16, 16))
    torch.save({"format": 1, "model": model.state_dict()}, tmp_path / "c.pt")
    plain = build_backbone("r2plus1d_10", width=4)
    checkpoint.load_state(plain.trunk, checkpoint.backbone_state(str(tmp_path / "c.pt")), "c.pt")
    assert (plain.trunk[0][1].running_mean == 0).all()  # only the adversarial branch was used


def test_the_hash_depends_on_the_weights_and_not_on_their_order():
    a = {"w": torch.arange(4.0), "n": torch.tensor(3)}
    b = {"w": torch.arange(4.0), "n": torch.tensor(4)}
    assert (
        checkpoint.state_sha(a)
        == checkpoint.state_sha(dict(reversed(a.items())))
        != checkpoint.state_sha(b)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 1}, "a checkpoint without config, epoch"),
        ({"format": 0}, "not a training checkpoint of format 1"),
        ([1], "not a training checkpoint"),
        ({1: 2}, "not a training checkpoint"),
    ],
)
def test_other_torch_files_are_refused_by_their_content(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        checkpoint.read_checkpoint(tmp_path / "x.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        checkpoint.backbone_state(str(tmp_path / "x.pt"))


def test_a_file_that_holds_a_function_is_refused(tmp_path):
    torch.save({"format": 1, "hook": print}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="more than tensors and plain values"):
        checkpoint.read_checkpoint(tmp_path / "x.pt")


def _same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return (
            isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
        )
    return a == b


def test_flipped_bits_are_detected_or_harmless(tmp_path):
    """Flip bits of weights, of the pickle and of the archive's own tables."""
    state = {
        **STATE,
        "model": {"w": torch.rand(3000), "n": torch.arange(40)},
        "config": "seed: 1\n" * 30,
        "step": 7,
    }
    path = tmp_path / "a.pt"
    checkpoint.write_atomic(path, state)
    whole = path.read_bytes()
    undetected = []
    detected = 0
    table = whole.index(b"PK\x01\x02")  # the archive's tables start here
    places = [*range(0, len(whole), len(whole) // 300), *range(table, len(whole), 3)]
    for number, place in enumerate(places):
        content = bytearray(whole)
        content[place] ^= 1 << number % 8
        path.write_bytes(content)
        try:
            loaded = checkpoint.read(path)
        except UserError as error:
            detected += 1
            assert "\n" not in str(error) and str(path) in str(error)
        else:
            undetected += [] if _same(loaded, state) else [(place, number % 8)]
    assert not undetected and detected > 0.7 * len(places)


def test_every_flipped_bit_of_the_table_of_contents_is_detected_or_harmless(tmp_path):
    """The table has no checksum. A bit that marks an entry as a folder would corrupt its tensor."""
    state = {"w": torch.rand(300), "b": torch.rand(7)}
    path = tmp_path / "a.pt"
    checkpoint.write_atomic(path, state)
    whole = path.read_bytes()
    table = whole.index(b"PK\x01\x02")
    weights = whole.index(b"PK\x01\x02", whole.index(b"data/0", table) - 60)
    undetected = []
    for place in [*range(table, table + 70), *range(weights, weights + 70)]:
        for bit in range(8):
            content = bytearray(whole)
            content[place] ^= 1 << bit
            path.write_bytes(content)
            try:
                loaded = checkpoint.read(path)
            except UserError:
                continue
            if not all(torch.equal(loaded[name], state[name]) for name in state):
                undetected.append((place - table, bit))
    assert not undetected


def test_flipped_bits_of_the_weights_are_detected(tmp_path):
    path = tmp_path / "a.pt"
    weights = torch.rand(500)
    checkpoint.write_atomic(path, {"w": weights})
    whole = path.read_bytes()
    start = whole.index(weights.numpy().tobytes())
    for bit in range(0, 8 * weights.nbytes, 97):
        content = bytearray(whole)
        content[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(UserError, match="wrong checksum"):
            checkpoint.read(path)


def test_a_checkpoint_with_nan_is_skipped_when_a_run_resumes(tmp_path, caplog):
    for step, value in ((1, 1.0), (2, float("nan"))):
        state = {**STATE, "step": step, "model": {"w": torch.full((3,), value)}}
        checkpoint.save(tmp_path, state, keep=3)
    path, state = checkpoint.newest_sound(tmp_path)
    assert path.name == "step_00000001.pt" and state["step"] == 1
    (tmp_path / "step_00000001.pt").unlink()
    with pytest.raises(
        UserError,
        match="holds no undamaged checkpoint: .*model.w is not finite; --overwrite starts again",
    ):
        checkpoint.newest_sound(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", "three"),
        ("model", [1]),
        ("config", 5),
        ("optimizer", "sgd"),
        ("rng", torch.ones(2)),
        ("method", 0),
    ],
)
def test_an_entry_of_the_wrong_type_is_refused_by_name(tmp_path, key, value):
    checkpoint.write_atomic(tmp_path / "a.pt", STATE | {key: value})
    with pytest.raises(
        UserError, match=f"{key} is not of type .*: the checkpoint is damaged; use another"
    ):
        checkpoint.read_checkpoint(tmp_path / "a.pt")
