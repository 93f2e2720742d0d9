"""Files of video transformers give the features of their authors' network."""

from argparse import Namespace

import pytest
import torch
from torch import nn

from tests.models.checkpoints.helpers import assert_same_features, loaded, prefixed, save
from tests.models.checkpoints.originals import VideoMae, randomise, sinusoid
from vidrobust.models.checkpoints import recognise, transformer_layouts
from vidrobust.utils.errors import UserError

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


# --- VideoMAE ---


def videomae_folder(path, **options):
    """Write the config.json of a small VideoMAE; return the spec of a random one."""
    transformers = pytest.importorskip("transformers")
    transformers.VideoMAEConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_frames=4,
        **options,
    ).save_pretrained(path)
    return f"hf:{path}@random"


@pytest.mark.parametrize("container", ["model", "module"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_videomae_finetuned(tmp_path, container, prefix):
    """`module` is the container of DeepSpeed; some loaders leave `backbone.` in front."""
    original = randomise(VideoMae(classes=7))
    content = {
        container: prefixed(original.state_dict(), prefix),
        "optimizer": {"state": {}},
        "epoch": 74,
        "args": Namespace(model="vit_base_patch16_224"),
    }
    path = save(tmp_path / "checkpoint.pth", content)
    network, _ = loaded(path, videomae_folder(tmp_path / "config"))
    assert_same_features(network, original, 4, IMAGENET)
    found = recognise(path, network.head_key)
    assert found.layout.name == "VideoMAE, finetuned" and found.left_out == []
    assert torch.equal(found.head["weight"], original.head.weight)
    assert torch.equal(found.head["bias"], original.head.bias)


def pretrained_videomae(original):
    """Return the state dict of pretraining: an encoder, and a decoder with blocks of its own."""
    state = prefixed(original.state_dict(), "encoder.")
    state |= prefixed(VideoMae(dim=8).blocks.state_dict(), "decoder.blocks.")
    state |= prefixed(nn.Linear(16, 8, bias=False).state_dict(), "encoder_to_decoder.")
    return state | {"mask_token": torch.zeros(1, 1, 8)}


def test_videomae_pretrained(tmp_path):
    original = randomise(VideoMae())
    state = prefixed(pretrained_videomae(original), "module.")
    path = save(tmp_path / "checkpoint-799.pth", {"model": state, "epoch": 799})
    spec = videomae_folder(tmp_path / "config", use_mean_pooling=False)
    network, _ = loaded(path, spec)
    assert_same_features(network, original, 4, IMAGENET)
    assert "use_mean_pooling=false" in recognise(path, network.head_key).text()


def test_pretrained_videomae_in_a_network_with_mean_pooling_is_refused(tmp_path):
    state = pretrained_videomae(randomise(VideoMae()))
    path = save(tmp_path / "checkpoint-799.pth", {"model": state})
    with pytest.raises(UserError, match=r"missing fc_norm.* unexpected videomae.layernorm"):
        loaded(path, videomae_folder(tmp_path / "config"))


def test_a_sinusoid_in_the_file_is_left_out_and_learned_positions_are_refused(tmp_path):
    original = randomise(VideoMae(classes=7))
    state = original.state_dict() | {"pos_embed": sinusoid(32, 16)[None]}
    path = save(tmp_path / "a.pth", {"model": state})
    assert recognise(path, "classifier").left_out == ["pos_embed"]
    save(path, {"model": state | {"pos_embed": torch.randn(1, 32, 16)}})
    with pytest.raises(UserError, match=r"a.pth: VideoMAE, finetuned: pos_embed was learned"):
        recognise(path, "classifier")


def test_videomae_with_the_older_names_of_transformers(tmp_path):
    """Files of the hub have q_bias and v_bias, which from_pretrained renames."""
    original = randomise(VideoMae(classes=7))
    path = save(tmp_path / "a.pth", {"model": original.state_dict()})
    found = recognise(path, "classifier")
    older = {
        key.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): value
        for key, value in found.backbone.items()
    }
    older |= prefixed(original.head.state_dict(), "classifier.")
    assert "videomae.encoder.layer.0.attention.attention.q_bias" in older
    network, _ = loaded(save(tmp_path / "b.pth", older), videomae_folder(tmp_path / "config"))
    assert_same_features(network, original, 4, IMAGENET)


def test_videomae_of_another_size_is_refused_in_one_line(tmp_path):
    path = save(tmp_path / "a.pth", {"model": VideoMae(classes=7, dim=24).state_dict()})
    with pytest.raises(UserError, match="architecture: other shape fc_norm .*videomae") as error:
        loaded(path, videomae_folder(tmp_path / "config"))
    assert "\n" not in str(error.value)


def test_an_older_transformers_gets_its_own_names_of_the_biases(tmp_path, monkeypatch):
    path = save(tmp_path / "a.pth", {"model": VideoMae(classes=7).state_dict()})
    monkeypatch.setattr(transformer_layouts, "_has_old_biases", lambda: True)
    names = [key.rpartition(".attention.")[2] for key in recognise(path, "classifier").backbone]
    assert names.count("q_bias") == names.count("v_bias") == 2
    assert "query.bias" not in names and "value.bias" not in names
