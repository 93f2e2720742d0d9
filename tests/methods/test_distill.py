"""DeACL against its formula; any backbone as teacher; teachers that do not fit."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.methods.helpers import ascend, assert_same, attack
from tests.training.helpers import tiny_config, train_state
from vidrobust.config import ModelConfig
from vidrobust.methods import Distill
from vidrobust.models import build_backbone, build_model
from vidrobust.training.teacher import read_teacher
from vidrobust.utils.errors import UserError

TINY = ModelConfig(backbone="r2plus1d_10", width=8)  # of four channels, all but one may be dead
ADVERSARY = "method.adversary."


@pytest.fixture(params=[1, 3], ids=["T=1", "T=3"])
def batch(request):
    return torch.rand(4, 1, 3, request.param, 16, 16), torch.arange(4), torch.arange(4)


def student(adversary=None, width=8):
    method = Distill(build_model(TINY, "none"), adversary, 1.5)
    method.set_teacher(build_backbone("r2plus1d_10", width=width))
    return method.train()


@pytest.mark.parametrize("width", [8, 6])
@pytest.mark.usefixtures("exact")
def test_deacl_is_its_formula(batch, width):
    """-cos(f(x), f_T(x)) - gamma cos(f(x_adv), f(x)); x_adv leaves the teacher, in eval mode."""
    views, ids, labels = batch
    method = student(attack(branches=("clean",)), width)
    net, teacher, linear, x = copy.deepcopy(method.model), method.teacher, method.map, views[:, 0]
    assert isinstance(linear, nn.Identity) == (width == 8)
    ours = method(views, ids, labels)["loss"]
    aim = teacher(x)
    net.eval()
    x_adv = ascend(lambda v: -F.cosine_similarity(linear(net(v)), aim), x)
    net.train()
    f, f_adv = net(torch.cat([x, x_adv])).chunk(2)  # norms see both
    expected = -F.cosine_similarity(linear(f), aim) - 1.5 * F.cosine_similarity(f_adv, f)
    assert_same(ours, expected, method.model, net)


def test_without_an_adversary_it_is_distillation_to_the_last_bit(batch):
    method = student(attack(branches=("clean",))).eval()
    both = method(*batch)
    method.adversary = None
    assert torch.equal(method(*batch)["loss"], both["loss_clean"])


def test_the_teacher_stays_as_it_is(batch):
    method = student(attack(branches=("clean",)))
    before = copy.deepcopy(method.teacher.state_dict())
    method.train()(*batch)["loss"].mean().backward()
    assert all(torch.equal(v, before[k]) for k, v in method.teacher.state_dict().items())
    assert not method.teacher.training and all(p.grad is None for p in method.teacher.parameters())


def test_a_checkpoint_or_a_backbone_teaches(ucf, tmp_path):
    """A teacher of another width is built by its checkpoint's configuration; one trained on clips
    of another shape is refused.
    """
    train_state(tiny_config(ucf, "model.width=6"), tmp_path / "teacher")
    distill = ["method.name=distill", f"{ADVERSARY}name=deacl", f"{ADVERSARY}steps=1"]
    path = tmp_path / "teacher"
    with pytest.raises(
        UserError, match="method.student=teacher: the teacher's backbone has another architecture"
    ):
        train_state(tiny_config(ucf, *distill, f"method.teacher={path}"), tmp_path / "refused")
    distill.append("method.student=random")
    state = train_state(tiny_config(ucf, *distill, f"method.teacher={path}"), tmp_path / "student")
    assert "map.weight" in state["method"] and any(
        key.startswith("teacher.") for key in state["method"]
    )
    same = [*distill[:-1], f"method.teacher={path}/backbone.pt", "model.width=6"]
    steps = ["train.max_steps=1", "optim.lr=1e-9"]
    begun = train_state(tiny_config(ucf, *same, *steps), tmp_path / "other")["model"]
    taught = torch.load(path / "backbone.pt")
    weights = {
        key: value for key, value in taught.items() if "running" not in key and "num" not in key
    }
    assert all(
        torch.allclose(begun[f"backbone.trunk.{key}"], value) for key, value in weights.items()
    )
    train_state(
        tiny_config(ucf, *same, *steps, f"model.weights={path}/backbone.pt"), tmp_path / "given"
    )
    with pytest.raises(
        UserError,
        match="trained on clips of 2 frames of 16 pixels, but these have 3 frames of 16",
    ):
        read_teacher(str(path), tiny_config(ucf, "data.frames=3"))
    kept = min((tmp_path / "student/checkpoints").glob("step_*.pt"))
    (tmp_path / "moved").mkdir()
    shutil.copy(path / "checkpoints/last.pt", tmp_path / "moved/t.pt")
    again = [*distill, "train.epochs=3"]
    train_state(
        tiny_config(ucf, *again, f"method.teacher={tmp_path}/moved/t.pt"), tmp_path / "on", kept
    )
    train_state(tiny_config(ucf, "model.width=6", "seed=5"), tmp_path / "stranger")
    with pytest.raises(
        UserError,
        match="a resume cannot change the teacher, and method.teacher=.*stranger has other",
    ):
        train_state(
            tiny_config(ucf, *again, f"method.teacher={tmp_path}/stranger"), tmp_path / "off", kept
        )
    with pytest.raises(
        UserError, match="method.teacher: .* another architecture.*; a backbone.pt is built with"
    ):
        read_teacher(f"{path}/backbone.pt", tiny_config(ucf))
    with pytest.raises(
        UserError, match="method.teacher: no checkpoint nowhere; give the folder of a trained run"
    ):
        read_teacher("nowhere", tiny_config(ucf))
    with pytest.raises(UserError, match="method.teacher is empty, and this method learns from one"):
        train_state(
            tiny_config(ucf, "method.name=distill", "method.student=random"), tmp_path / "none"
        )
