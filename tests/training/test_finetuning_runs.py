"""Finetuning runs: resumes, ranks, averages, what a checkpoint holds, what is refused."""

import pytest
import torch

from tests.training.helpers import equal, tiny_config, train_state, two_ranks
from vidrobust.utils.errors import UserError

SUPERVISED = ["method.name=supervised", "optim.lr=0.01"]
KINDS = {
    "mixed": ["method.mixup=0.8", "method.cutmix=1", "method.label_smoothing=0.1"],
    "slf": ["method.freeze=true", "model.head_scale=0", "train.average=0.9"],
    "alf": ["method.freeze=true", "method.adversary.name=pgd", "method.adversary.steps=2"],
    "attentive": ["method.freeze=true", "model.head=attentive", "model.head_blocks=2"],
    "layers": ["optim.name=adamw", "optim.layer_decay=0.5", "optim.final_lr=0.001"],
    "trades": ["method.mixup=0.8", "method.adversary.name=trades", "method.adversary.steps=1"],
    "tokens": ["model.head=attentive", "model.head_stage=3", "model.head_dropout=0.5"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_finetuning_is_resumed_bitwise(ucf, tmp_path, kind):
    cfg = tiny_config(ucf, *SUPERVISED, *KINDS[kind], "train.checkpoint_every=1", "train.keep=9")
    whole = train_state(cfg, tmp_path / "whole")
    resumed = train_state(
        cfg, tmp_path / "resumed", tmp_path / "whole/checkpoints/step_00000003.pt"
    )
    for key in whole:
        assert equal(whole[key], resumed[key]), key
    assert all(value.isfinite().all() for value in whole["model"].values())


def test_a_frozen_run_keeps_the_backbone_of_its_weights(ucf, tmp_path):
    first = train_state(tiny_config(ucf, *SUPERVISED), tmp_path / "first")
    words = [*SUPERVISED, *KINDS["alf"], "train.average=0.9", f"model.weights={tmp_path}/first"]
    second = train_state(tiny_config(ucf, *words), tmp_path / "second")
    for part in ("model", "average"):
        for key, value in second[part].items():
            if key.startswith("backbone."):
                assert torch.equal(value, first["model"][key]), key
    assert not torch.equal(second["model"]["head.weight"], second["average"]["head.weight"])


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("method.freeze=true", "method.freeze"),
        ("model.head=attentive", "model.head"),
        ("optim.layer_decay=0.5", "optim.layer_decay"),
    ],
)
def test_a_resume_cannot_change_what_is_in_a_checkpoint(ucf, tmp_path, word, key):
    train_state(tiny_config(ucf, *SUPERVISED), tmp_path / "run")
    with pytest.raises(UserError, match=f"a resume cannot change {key}="):
        train_state(tiny_config(ucf, *SUPERVISED, word), tmp_path / "again", tmp_path / "run")


def test_two_ranks_train_a_frozen_model_as_one_process(ucf, tmp_path):
    words = [*SUPERVISED, *KINDS["mixed"], *KINDS["attentive"]]
    ours = two_ranks(tmp_path, *words, f"data.root={ucf}")
    one = train_state(tiny_config(ucf, *words), tmp_path / "one")
    for key, value in one["model"].items():
        assert torch.allclose(value, ours["model"][key], atol=1e-5), key


def test_two_ranks_train_a_model_with_weights_behind_its_tokens(ucf, tmp_path):
    state = two_ranks(tmp_path, *SUPERVISED, *KINDS["tokens"], f"data.root={ucf}")
    assert state["step"] == 4


class Mean(torch.nn.Module):
    """A network without weights."""

    def forward(self, x):
        return x.mean((2, 3, 4))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_network_without_weights_can_only_have_its_head_trained(ucf, tmp_path, frozen):
    torch.jit.script(Mean()).save(str(tmp_path / "mean.pt"))
    words = [*SUPERVISED, f"model.backbone=torchscript:{tmp_path / 'mean.pt'}"]
    words += ["model.width=0", f"method.freeze={str(frozen).lower()}"]
    words += ["model.input.frames=2", "model.input.size=[16,16]"]
    cfg = tiny_config(ucf, *words)
    if frozen:
        state = train_state(cfg, tmp_path / "out")
        assert state["model"].keys() == {"head.weight", "head.bias"}
        return
    with pytest.raises(UserError, match=r"it has no weights to train.* method.freeze=true"):
        train_state(cfg, tmp_path / "out")
    assert not (tmp_path / "out" / "config.yaml").exists()
