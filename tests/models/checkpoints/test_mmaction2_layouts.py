"""Files of mmaction2 give the features of its networks, or are refused by name."""

import re

import pytest
import torch
from torch import nn
from torchvision.models import get_model
from torchvision.models.video import SwinTransformer3d

from tests.models.checkpoints.helpers import (
    assert_same_features,
    averaged,
    hub,
    loaded,
    prefixed,
    save,
    small_mvit,
    timesformer_folder,
    videomae_folder,
)
from tests.models.checkpoints.originals import Mvit, TimeSformer, VideoMae, randomise, sinusoid
from vidrobust import checkpoint
from vidrobust.models.checkpoints import recognise
from vidrobust.utils.errors import UserError

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class HistoryBuffer:
    """Stand in for the class of mmengine that its files name."""


def mmaction2_file(path, state, head):
    """Write a file as mmengine does, with the buffers of its preprocessor."""
    weights = prefixed(state, "backbone.") | prefixed(head.state_dict(), "cls_head.fc_cls.")
    weights |= {"data_preprocessor.mean": torch.zeros(3, 1, 1)}
    content = {
        "meta": {"epoch": 256, "cfg": "model = dict(type='Recognizer3D')"},
        "state_dict": weights,
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}},
    }
    return save(path, content)


def assert_head_and_card(path, network, head):
    found = recognise(path, network.head_key)
    assert torch.equal(found.head["weight"], head.weight)
    assert torch.equal(found.head["bias"], head.bias)
    assert found.card["view_average"] == "probabilities"
    assert "data_preprocessor.mean" in found.left_out


def slow_only_name(key):
    """Return mmaction2's name of a tensor of pytorchvideo's Slow-R50."""
    block, rest = re.fullmatch(r"blocks\.(\d)\.(.*)", key).groups()
    if block == "0":
        return rest.replace("conv.", "conv1.conv.").replace("norm.", "conv1.bn.")
    unit, rest = re.fullmatch(r"res_blocks\.(\d+)\.(.*)", rest).groups()
    for ours, theirs in (("branch1_conv", "downsample.conv"), ("branch1_norm", "downsample.bn")):
        rest = rest.replace(ours, theirs)
    for number, letter in enumerate("abc", 1):
        rest = rest.replace(f"branch2.conv_{letter}", f"conv{number}.conv")
        rest = rest.replace(f"branch2.norm_{letter}", f"conv{number}.bn")
    return f"layer{block}.{unit}.{rest}"


def test_slow_only(tmp_path):
    original = hub("slow_r50")
    state = {
        slow_only_name(key): value
        for key, value in original.state_dict().items()
        if not key.startswith("blocks.5")
    }
    # names of mmaction2's modules
    assert {
        "conv1.bn.running_var",
        "layer1.0.downsample.conv.weight",
        "layer4.2.conv3.bn.bias",
    } <= state.keys()
    head = nn.Linear(2048, 400)
    path = mmaction2_file(tmp_path / "slowonly.pth", state, head)
    network, model = loaded(path, "pytorchvideo:slow_r50")
    assert (model.mean, model.std) == IMAGENET
    assert_same_features(network, lambda x: averaged(original, x), 4, IMAGENET, size=64)
    assert_head_and_card(path, network, head)


def mmaction2_timesformer_name(key):
    """Return mmaction2's name of a tensor of TimeSformer, from that of its authors."""
    names = {
        "patch_embed.proj.": "patch_embed.projection.",
        "blocks.": "transformer_layers.layers.",
        ".temporal_norm1.": ".attentions.0.norm.",
        ".temporal_fc.": ".attentions.0.temporal_fc.",
        ".temporal_attn.qkv.": ".attentions.0.attn.in_proj_",
        ".temporal_attn.proj.": ".attentions.0.attn.out_proj.",
        ".norm1.": ".attentions.1.norm.",
        ".attn.qkv.": ".attentions.1.attn.in_proj_",
        ".attn.proj.": ".attentions.1.attn.out_proj.",
        ".norm2.": ".ffns.0.norm.",
        ".mlp.fc1.": ".ffns.0.layers.0.0.",
        ".mlp.fc2.": ".ffns.0.layers.1.",
    }
    for ours, theirs in names.items():
        key = key.replace(ours, theirs)
    return key


def test_timesformer(tmp_path):
    original = randomise(TimeSformer())
    state = {
        mmaction2_timesformer_name(key): value
        for key, value in original.state_dict().items()
        if not key.startswith("head.")
    }
    assert "transformer_layers.layers.1.attentions.1.attn.in_proj_bias" in state
    path = mmaction2_file(tmp_path / "timesformer.pth", state, original.head)
    network, model = loaded(path, timesformer_folder(tmp_path / "config"))
    assert model.mean == model.std == [0.5] * 3
    assert_same_features(network, original, 4, ([0.5] * 3, [0.5] * 3))
    assert_head_and_card(path, network, original.head)


def test_videomae(tmp_path):
    original = randomise(VideoMae(classes=7))
    state = {"pos_embed": sinusoid(32, 16)[None]}
    for key, value in original.state_dict().items():
        key = key.replace("patch_embed.proj.", "patch_embed.projection.")
        key = key.replace(".mlp.fc1.", ".mlp.layers.0.0.").replace(".mlp.fc2.", ".mlp.layers.1.")
        if not key.startswith("head."):
            state[key] = value
    path = mmaction2_file(tmp_path / "videomae.pth", state, original.head)
    network, _ = loaded(path, videomae_folder(tmp_path / "config"))
    assert_same_features(network, original, 4, IMAGENET)
    assert_head_and_card(path, network, original.head)
    assert recognise(path, network.head_key).layout.name == "mmaction2 VideoMAE"


def swin_name(key, norm="norm3"):
    """Return mmaction2's name of a tensor of torchvision's Video Swin."""
    found = re.fullmatch(r"features\.(\d)\.(.*)", key)
    if found:
        stage, odd = divmod(int(found[1]), 2)
        key = f"layers.{stage}.{'downsample' if odd else 'blocks'}.{found[2]}"
    key = key.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
    return re.sub(r"^norm\.", f"{norm}.", key)


@pytest.mark.parametrize("norm", ["norm3", "norm"])
def test_video_swin(tmp_path, norm):
    """mmaction2 numbers the last norm, the authors' own code does not."""
    original = randomise(small_swin())
    state = {
        swin_name(key, norm): value
        for key, value in original.state_dict().items()
        if not key.startswith("head.")
    }
    assert "layers.0.downsample.reduction.weight" in state
    assert "layers.1.blocks.0.attn.relative_position_index" in state
    path = mmaction2_file(tmp_path / "swin.pth", state, original.head)
    found = recognise(path, "head")
    original.head = nn.Identity()
    network = small_swin()
    network.head = nn.Identity()
    checkpoint.load_state(network.eval(), found.backbone, "swin.pth")
    clips = torch.rand(2, 3, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(clips), original(clips))
    assert found.layout.name.startswith("Video Swin")
    assert (found.options["mean"], found.options["std"]) == IMAGENET
    assert len(found.head["weight"]) == 7 and found.card["view_average"] == "probabilities"


def small_swin():
    """Return torchvision's Video Swin with two stages of two blocks."""
    return SwinTransformer3d(
        patch_size=[2, 4, 4],
        embed_dim=8,
        depths=[2, 2],
        num_heads=[1, 2],
        window_size=[2, 4, 4],
        num_classes=7,
    )


@pytest.mark.parametrize("name", ["swin3d_t", "swin3d_b"])
def test_each_tensor_of_the_published_sizes_of_swin_is_filled(tmp_path, name):
    with torch.device("meta"):
        keys = get_model(name).state_dict().keys()
    state = {swin_name(key): torch.zeros(1) for key in keys if not key.startswith("head.")}
    state["patch_embed.proj.weight"] = torch.zeros(2, 3, 2, 4, 4)
    path = mmaction2_file(tmp_path / "swin.pth", state, nn.Linear(4, 4))
    assert recognise(path, "head").backbone.keys() == {k for k in keys if k[:5] != "head."}


def test_mvit(tmp_path):
    original = randomise(Mvit(second=True))
    state = {}
    for key, value in original.state_dict().items():
        key = key.replace("patch_embed.proj.", "patch_embed.projection.")
        if not key.startswith("head."):
            state[re.sub(r"^norm\.", "norm3.", key)] = value
    path = mmaction2_file(tmp_path / "mvit.pth", state, original.head["projection"])
    found = recognise(path, "head.1")
    network = small_mvit(second=True)
    checkpoint.load_state(network, found.backbone, "mvit.pth")
    assert_same_features(network, original, 4)
    assert found.options == {"mean": [0.45] * 3, "std": [0.225] * 3}
    assert torch.equal(found.head["weight"], original.head["projection"].weight)
    assert found.layout.name == "mmaction2 MViT"


def test_an_mvit_with_absolute_positions_is_refused_by_name(tmp_path):
    state = Mvit(second=True).state_dict() | {"pos_embed": torch.zeros(1, 9, 8)}
    state["patch_embed.projection.weight"] = state.pop("patch_embed.proj.weight")
    path = mmaction2_file(tmp_path / "mvit.pth", state, nn.Linear(4, 4))
    with pytest.raises(UserError, match="mmaction2 MViT: it has one position embedding"):
        recognise(path)


# --- Other networks ---


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"slow_path.conv1.conv.weight": (64, 3, 1, 7, 7)}, "its SlowFast has no norms where"),
        ({"conv1.conv.conv_s.weight": (83, 3, 1, 7, 7)}, r"its R\(2\+1\)D is R\(2\+1\)D-34"),
        (
            {"transformer_layers.layers.0.norms.0.weight": (16,)},
            "its TimeSformer attends to space alone",
        ),
        ({"layer1.0.conv1.conv.net.weight": (64, 64, 1, 1)}, "its TSM shifts channels"),
        ({"conv1.conv.weight": (64, 3, 5, 7, 7)}, "its I3D halves the number of frames"),
        ({"conv1.conv.weight": (64, 3, 7, 7)}, "networks of single frames"),
        (
            {
                "layers.0.blocks.0.attn.relative_position_bias_table": (169, 3),
                "patch_embed.proj.weight": (96, 3, 4, 4),
            },
            "no source here has this network",
        ),
        ({"conv1_s.conv.weight": (24, 3, 1, 3, 3)}, "no source here has this network"),
    ],
)
def test_other_networks_are_refused_by_name(tmp_path, state, said):
    tensors = {key: torch.zeros(shape) for key, shape in state.items()}
    path = mmaction2_file(tmp_path / "a.pth", tensors, nn.Linear(4, 4))
    with pytest.raises(UserError, match=f"a.pth: mmaction2: .*{said}"):
        recognise(path)


def slow_only_state(channels=3, **others):
    """Return tensors by which a Slow-only network is recognised."""
    state = {
        "conv1.conv.weight": torch.zeros(64, channels, 1, 7, 7),
        "layer2.0.conv1.conv.weight": torch.zeros(128, 256, 1, 1, 1),
        "layer3.0.conv1.conv.weight": torch.zeros(256, 512, 3, 1, 1),
        "layer4.0.conv1.conv.weight": torch.zeros(512, 1024, 3, 1, 1),
    }
    return state | others


def test_a_slow_network_of_optical_flow_or_with_non_local_blocks_is_refused(tmp_path):
    path = mmaction2_file(tmp_path / "a.pth", slow_only_state(2), nn.Linear(4, 4))
    with pytest.raises(UserError, match="SlowOnly: it takes inputs of 2 channels"):
        recognise(path)
    others = {"layer2.1.non_local_block.g.weight": torch.zeros(2)}
    mmaction2_file(path, slow_only_state(**others), nn.Linear(4, 4))
    with pytest.raises(UserError, match="mmaction2: it has non-local blocks"):
        recognise(path)


@pytest.mark.parametrize(
    "keys",
    [
        ["cls_head.fc_cls.weight", "conv1.weight"],
        ["backbone.conv1.weight", "fc.weight"],
        # of neighbouring layouts
        ["encoder_q.0.layer4.0.conv1.weight", "encoder_q.0.conv1.weight"],
        ["backbone.Conv_1a.conv2.weight", "final_fc.1.weight"],
        ["layer4.0.conv1.weight", "conv1.weight", "bn1.running_var"],
    ],
)
def test_similar_names_are_those_of_a_plain_backbone(tmp_path, keys):
    path = save(tmp_path / "a.pth", {"state_dict": {key: torch.zeros(2, 2) for key in keys}})
    assert recognise(path).layout.name == "a state dict of the backbone itself"
