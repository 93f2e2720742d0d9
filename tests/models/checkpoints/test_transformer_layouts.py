"""Files of video transformers give the features of their authors' network."""

import re
from argparse import Namespace

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from tests.models.checkpoints.helpers import (
    assert_same_features,
    loaded,
    prefixed,
    save,
    small_mvit,
    timesformer_folder,
    videomae_folder,
)
from tests.models.checkpoints.originals import (
    Mvit,
    TimeSformer,
    VideoMae,
    VJepa2,
    randomise,
    sinusoid,
)
from vidrobust import checkpoint
from vidrobust.models.checkpoints import recognise, transformer_layouts
from vidrobust.models.sources import build_source
from vidrobust.utils.errors import UserError

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


# --- VideoMAE ---


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


def test_the_same_for_pretrained_files(tmp_path):
    state = pretrained_videomae(randomise(VideoMae()))
    state |= {"encoder.pos_embed": sinusoid(32, 16)[None]}
    path = save(tmp_path / "a.pth", {"model": state})
    assert "encoder.pos_embed" in recognise(path, "classifier").left_out
    save(path, {"model": state | {"encoder.pos_embed": torch.randn(1, 33, 16)}})
    with pytest.raises(UserError, match=r"VideoMAE, pretrained: encoder.pos_embed was learned"):
        recognise(path, "classifier")


@pytest.mark.parametrize(
    "keys",
    [
        # BEiT and MAE, of images
        ["blocks.0.attn.qkv.weight", "fc_norm.weight", "cls_token"],
        ["encoder.blocks.0.attn.qkv.weight", "mask_token", "encoder.cls_token"],
        # an encoder alone, and a decoder of another network
        ["encoder.blocks.0.attn.qkv.weight", "encoder.norm.weight"],
        ["encoder.layer1.0.conv1.weight", "decoder.0.weight"],
        ["fc_norm.weight", "blocks.0.mlp.fc1.weight"],
        # image transformers and other networks of video
        ["backbone.blocks.0.attn.qkv.bias", "backbone.patch_embed.proj.weight"],
        ["backbone.blocks.0.attn.qkv.bias", "backbone.norm.weight"],
        ["patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "cls_token"],
        ["blocks.0.attn.pool_k.weight", "cls_token"],
        ["blocks.0.temporal_attn.qkv.weight"],
        ["time_embed", "cls_token"],
    ],
)
def test_similar_names_are_not_taken_for_a_video_transformer(tmp_path, keys):
    path = save(tmp_path / "a.pth", {"model": {key: torch.zeros(3, 3) for key in keys}})
    assert recognise(path, "classifier").layout.name == "a state dict of the backbone itself"


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
    # of pretraining
    older |= prefixed(nn.Linear(2, 2).state_dict(), "decoder.head.")
    older |= {"encoder_to_decoder.weight": torch.zeros(2, 2), "mask_token": torch.zeros(1, 1, 2)}
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


# --- MViT ---


@pytest.mark.parametrize("second", [False, True])
def test_pyslowfast_mvit(tmp_path, second):
    original = randomise(Mvit(second))
    # a projector of contrastive training
    state = original.state_dict() | {"head.projection.projection.0.weight": torch.zeros(2, 2)}
    path = save(tmp_path / "mvit.pyth", {"epoch": 199, "model_state": state})
    found = recognise(path, "head.1")
    network = small_mvit(second)
    checkpoint.load_state(network, found.backbone, "mvit.pyth")
    assert_same_features(network, original, 4)
    assert torch.equal(found.head["weight"], original.head["projection"].weight)


def pyslowfast_mvit(network):
    """Return the state dict of torchvision's MViT in the names and shapes of PySlowFast."""
    state = {}
    for key, value in network.state_dict().items():
        key = key.replace("conv_proj.", "patch_embed.proj.").replace(".project.0.", ".proj.")
        key = key.replace(".project.", ".proj.").replace("head.1.", "head.projection.")
        key = key.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
        key = re.sub(r"\.pool_(.)\.norm_act\.0\.", r".norm_\1.", key)
        key = key.replace(".pool.weight", ".weight")
        if key.startswith("pos_encoding."):
            value = value[None] if value.ndim == 2 else value[None, None]
            key = re.sub(r"pos_encoding\.(.*)_pos", r"pos_embed_\1", key)
            key = key.replace("pos_encoding.class_token", "cls_token")
        state[key] = value
    return state


@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_each_tensor_of_the_published_sizes_of_mvit_is_filled(tmp_path, name):
    original = get_model(name)
    path = save(tmp_path / "mvit.pyth", {"model_state": pyslowfast_mvit(original)})
    network, _ = loaded(path, f"torchvision:{name}")
    head = recognise(path, "head.1").head
    filled = network.stored.state_dict() | prefixed(head, "head.1.")
    expected = original.state_dict()
    assert filled.keys() == expected.keys()
    assert all(torch.equal(filled[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pos_embed": torch.zeros(1, 9, 8)}, "one position embedding for time and space"),
        ({"norm_stem.weight": torch.zeros(8)}, "a norm before its blocks"),
        ({"blocks.0.attn.q.weight": torch.zeros(8, 8)}, "separate matrices"),
        ({"cls_token": None}, "no class token"),
    ],
)
def test_an_mvit_that_torchvision_does_not_have_is_refused_by_name(tmp_path, change, said):
    state = Mvit(second=True).state_dict() | change
    state = {key: value for key, value in state.items() if value is not None}
    path = save(tmp_path / "mvit.pyth", {"model_state": state})
    with pytest.raises(UserError, match=f"mvit.pyth: PySlowFast MViT: it has {said}"):
        recognise(path, "head.1")


# --- TimeSformer ---


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_timesformer(tmp_path, prefix):
    """Its code is built on PySlowFast, with the network in `model`."""
    original = randomise(TimeSformer())
    content = {"epoch": 15, "model_state": prefixed(original.state_dict(), prefix), "cfg": ""}
    path = save(tmp_path / "TimeSformer_divST_8x32_224_K400.pyth", content)
    network, _ = loaded(path, timesformer_folder(tmp_path / "config"))
    assert_same_features(network, original, 4, IMAGENET)
    found = recognise(path, network.head_key)
    assert found.layout.name == "TimeSformer" and found.left_out == []
    assert torch.equal(found.head["weight"], original.head.weight)


@pytest.mark.parametrize("frames", [2, 8])
def test_another_number_of_frames_is_refused(tmp_path, frames):
    """The layers of transformers would mix the tokens of different places."""
    path = save(tmp_path / "a.pyth", {"model_state": randomise(TimeSformer()).state_dict()})
    network, _ = loaded(path, timesformer_folder(tmp_path / "config"))
    with pytest.raises(UserError, match=f"takes 4 frames, not {frames}; set data.frames=4"):
        network(torch.rand(1, 3, frames, 32, 32))


def test_timesformer_of_another_size_interpolates_its_positions(tmp_path):
    original = randomise(TimeSformer())
    path = save(tmp_path / "a.pyth", {"model_state": original.state_dict()})
    network, _ = loaded(path, timesformer_folder(tmp_path / "config"))
    places = original.pos_embed.data[:, 1:].view(1, 4, 4, -1)
    # each of 6 rows and columns gets the nearest of 4
    nearest = [0, 0, 1, 2, 2, 3]
    places = places[:, nearest][:, :, nearest].flatten(1, 2)
    original.pos_embed = nn.Parameter(torch.cat([original.pos_embed.data[:, :1], places], 1))
    assert_same_features(network, original, 4, IMAGENET, size=48)


# --- V-JEPA 2 ---


def vjepa2_folder(path, architectures=("VJEPA2Model",)):
    """Write the config.json of a small V-JEPA 2; return the spec of a random one."""
    transformers = pytest.importorskip("transformers")
    options = transformers.VJEPA2Config(
        crop_size=32,
        frames_per_clip=4,
        patch_size=8,
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        mlp_ratio=2,
        pred_hidden_size=16,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    options.architectures = list(architectures)
    options.save_pretrained(path)
    return f"hf:{path}@random"


def vjepa2_file(path, original, **others):
    """Write an encoder as V-JEPA 2's training does, with another one beside its average."""
    state = prefixed(original.state_dict(), "module.backbone.") | others
    student = prefixed(randomise(VJepa2()).state_dict(), "module.backbone.")
    predictor = {"module.backbone.mask_tokens.0": torch.zeros(1, 1, 16)}
    return save(path, {"encoder": student, "predictor": predictor, "target_encoder": state})


def test_vjepa2(tmp_path):
    original = randomise(VJepa2())
    positions = {"module.backbone.pos_embed": torch.zeros(1, 8 * 16**2, 32)}
    path = vjepa2_file(tmp_path / "vitl.pt", original, **positions)
    network, _ = loaded(path, vjepa2_folder(tmp_path / "config"))
    assert_same_features(network, original, 4, IMAGENET)
    found = recognise(path, network.head_key)
    assert found.layout.name == "V-JEPA 2" and found.left_out == ["backbone.pos_embed"]


def test_vjepa2_with_an_encoder_alone(tmp_path):
    """Files of the hub hold the encoder and the predictor."""
    original = randomise(VJepa2())
    state = prefixed(original.state_dict(), "module.backbone.")
    path = save(tmp_path / "vitl.pt", {"encoder": state, "predictor": {}})
    network, _ = loaded(path, vjepa2_folder(tmp_path / "config"))
    assert_same_features(network, original, 4, IMAGENET)


def test_the_encoder_of_vjepa2_takes_any_number_of_frames_but_one_size(tmp_path):
    original = randomise(VJepa2())
    network, _ = loaded(
        vjepa2_file(tmp_path / "vitl.pt", original), vjepa2_folder(tmp_path / "config")
    )
    for block in original.blocks:
        block.attn.grid = (4, 4, 4)
    assert_same_features(network, original, 8, IMAGENET)
    with pytest.raises(UserError, match=r"takes 32 x 32 pixels, not 48 x 48; set data.size=32"):
        network(torch.rand(1, 3, 4, 48, 48))


def test_a_folder_with_an_encoder_of_vjepa2_has_no_random_pooler(tmp_path):
    transformers = pytest.importorskip("transformers")
    vjepa2_folder(tmp_path / "config")
    options = transformers.VJEPA2Config.from_pretrained(tmp_path / "config")
    whole = transformers.VJEPA2Model(options).eval()
    whole.save_pretrained(tmp_path / "model")
    source = build_source(f"hf:{tmp_path / 'model'}")
    assert source.trained and source.head is None
    clips = torch.rand(2, 3, 4, 32, 32)
    with torch.no_grad():
        tokens = whole(clips.transpose(1, 2), skip_predictor=True).last_hidden_state
        assert torch.allclose(source.network.eval()(clips), tokens.mean(1), atol=1e-5)


@pytest.mark.parametrize(
    ("others", "taken"), [({}, True), ({"module.backbone.cls_token": torch.zeros(1, 1, 32)}, False)]
)
def test_a_class_token_is_that_of_another_network(tmp_path, others, taken):
    path = vjepa2_file(tmp_path / "vitl.pt", VJepa2(), **others)
    assert (recognise(path, "classifier").layout.name == "V-JEPA 2") is taken


def test_an_encoder_of_vjepa2_does_not_fill_a_classifier(tmp_path):
    path = vjepa2_file(tmp_path / "vitl.pt", randomise(VJepa2()))
    spec = vjepa2_folder(tmp_path / "config", ("VJEPA2ForVideoClassification",))
    with pytest.raises(UserError, match=r"another architecture: missing .*pooler"):
        loaded(path, spec)


@pytest.mark.parametrize(
    ("key", "tokens", "said"),
    [
        ("pos_embed", 8 * 14**2, "V-JEPA 1 adds position embeddings"),
        ("pos_embed", 8 * 24**2, "V-JEPA 1 adds position embeddings"),
        ("patch_embed_img.proj.weight", 1, "V-JEPA 2.1 has an image branch"),
    ],
)
def test_other_versions_of_vjepa_are_refused_by_name(tmp_path, key, tokens, said):
    others = {f"module.backbone.{key}": torch.zeros(1, tokens, 32)}
    path = vjepa2_file(tmp_path / "vitl.pt", VJepa2(), **others)
    with pytest.raises(UserError, match=f"vitl.pt: V-JEPA 2: {said}"):
        recognise(path, "classifier")
