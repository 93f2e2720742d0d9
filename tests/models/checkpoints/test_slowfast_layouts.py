"""Files of PySlowFast and pytorchvideo give the features of their networks."""

import pickle
import re
import struct
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.checkpoints.helpers import (
    assert_same_features,
    averaged,
    hub,
    loaded,
    prefixed,
    pyslowfast_name,
    save,
)
from vidrobust.models.checkpoints import read_weights, recognise
from vidrobust.utils.errors import UserError

SLOWFAST = ([0.45] * 3, [0.225] * 3)


def test_pyslowfast_takes_other_frames_for_its_slow_pathway(tmp_path):
    original = hub("slowfast_r50")
    state = {
        pyslowfast_name(key): value
        for key, value in original.state_dict().items()
        if not key.startswith("blocks.6")
    }
    assert "s1.pathway0_stem.bn.weight" in state and "s1_fuse.conv_f2s.weight" in state
    assert (
        "s5.pathway1_res2.branch2.c_bn.bias" in state and "s2.pathway0_res0.branch1.weight" in state
    )
    state |= {
        "head.projection.weight": torch.ones(400, 2304),
        "head.projection.bias": torch.ones(400),
    }
    content = {"epoch": 195, "model_state": state, "cfg": "DATA: {NUM_FRAMES: 32}"}
    path = save(tmp_path / "SLOWFAST_8x8_R50.pyth", content)
    network, model = loaded(path, "slowfast_r50")
    assert model.slow_frames == "linspace" and recognise(path).head["weight"].shape == (400, 2304)

    def by_linspace(x):
        frames = torch.linspace(0, x.shape[2] - 1, x.shape[2] // 4).long()
        return averaged(original, [x[:, :, frames], x])

    assert_same_features(network, by_linspace, 8, SLOWFAST, size=64)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_pytorchvideo_slowfast(tmp_path, prefix):
    """`model.` is the prefix of PySlowFast's own wrapper of these networks."""
    original = hub("slowfast_r50")
    state = prefixed(original.state_dict(), prefix)
    path = save(tmp_path / "SLOWFAST_8x8_R50.pyth", {"model_state": state})
    network, model = loaded(path, "slowfast_r50")
    assert model.slow_frames == "" and len(recognise(path).head["weight"]) == 400
    assert_same_features(
        network, lambda x: averaged(original, [x[:, :, ::4], x]), 8, SLOWFAST, size=64
    )


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_networks_of_one_pathway(tmp_path, prefix):
    """PySlowFast's Slow-R50, supervised and from its contrastive training."""
    original = hub("slow_r50")
    state = {
        prefix + pyslowfast_name(key): value
        for key, value in original.state_dict().items()
        if not key.startswith("blocks.5")
    }
    state[f"{prefix}head.projection.weight"] = torch.ones(128, 2048)
    if prefix:
        state |= {"backbone_hist.s1.pathway0_stem.bn.weight": torch.ones(64), "ptr": torch.ones(1)}
    path = save(tmp_path / "slow.pyth", {"model_state": state})
    network, _ = loaded(path, "pytorchvideo:slow_r50")
    assert_same_features(network, lambda x: averaged(original, x), 4, SLOWFAST, size=64)


def test_pytorchvideo_of_one_pathway(tmp_path):
    original = hub("slow_r50")
    path = save(tmp_path / "SLOW_8x8_R50.pyth", {"model_state": original.state_dict()})
    network, _ = loaded(path, "pytorchvideo:slow_r50")
    assert len(recognise(path).head["weight"]) == 400
    assert_same_features(network, lambda x: averaged(original, x), 4, SLOWFAST, size=64)


@pytest.mark.parametrize("name", ["c2d_r50", "i3d_r50"])
def test_networks_that_pool_frames(tmp_path, name):
    """pytorchvideo counts the pooling as a block, PySlowFast does not."""
    original = hub(name)
    state = {
        pyslowfast_name(key, pooled=True): value
        for key, value in original.state_dict().items()
        if not key.startswith("blocks.6")
    }
    state |= prefixed(original.blocks[6].proj.state_dict(), "head.projection.")
    path = save(tmp_path / "model.pyth", {"model_state": state})
    network, _ = loaded(path, f"pytorchvideo:{name}")
    found = recognise(path)
    assert found.layout.name == "PySlowFast C2D, I3D"
    assert torch.equal(found.head["weight"], original.blocks[6].proj.weight)
    assert_same_features(network, lambda x: averaged(original, x, 6), 4, SLOWFAST, size=64)


def test_networks_of_pytorchvideo_that_pyslowfast_has_wrapped(tmp_path):
    original = hub("i3d_r50")
    path = save(tmp_path / "a.pyth", {"model_state": prefixed(original.state_dict(), "model.")})
    network, _ = loaded(path, "pytorchvideo:i3d_r50")
    assert len(recognise(path).head["weight"]) == 400
    assert_same_features(network, lambda x: averaged(original, x, 6), 4, SLOWFAST, size=64)


def slowfast_4x16(name):
    """Return the two tensors that show a SlowFast 4x16 R50, in the names of one code base."""
    keys = {
        "pyth": ("s1.pathway0_stem.conv.weight", "s1.pathway1_stem.conv.weight"),
        "caffe2": ("conv1_w", "t_conv1_w"),
        "hub": ("blocks.0.multipathway_blocks.0.conv.weight",),
    }[name]
    fusion = {
        "pyth": "s1_fuse.conv_f2s.weight",
        "caffe2": "t_pool1_subsample_w",
        "hub": "blocks.0.multipathway_fusion.conv_fast_to_slow.weight",
    }[name]
    state = {key: torch.zeros(8, 3, 1, 7, 7) for key in keys} | {
        fusion: torch.zeros(16, 8, 5, 1, 1)
    }
    return state | ({"t_res_conv1_bn_riv": torch.ones(8)} if name == "caffe2" else {})


@pytest.mark.parametrize("name", ["pyth", "caffe2", "hub"])
def test_slowfast_4x16_is_refused_by_name(tmp_path, name):
    path = save(tmp_path / "a.pyth", {"model_state": slowfast_4x16(name)})
    with pytest.raises(UserError, match="a.pyth: .*SlowFast 4x16 R50 .* is another network"):
        recognise(path)


def test_slowfast_r101_has_the_smaller_fusion_kernel_too(tmp_path):
    state = slowfast_4x16("pyth")
    state["s4.pathway0_res6.branch2.a.weight"] = torch.zeros(8, 8, 3, 1, 1)
    assert recognise(save(tmp_path / "a.pyth", {"model_state": state})).backbone


@pytest.mark.parametrize("key", ["s3.pathway0_nonlocal1.conv_g.weight", "nonlocal_conv3_1_g_w"])
def test_non_local_blocks_are_refused_by_name(tmp_path, key):
    state = slowfast_4x16("caffe2" if key.startswith("nonlocal") else "pyth")
    path = save(tmp_path / "a.pyth", {"model_state": state | {key: torch.ones(2)}})
    with pytest.raises(UserError, match="it has non-local blocks"):
        recognise(path)


@pytest.mark.parametrize("late", [1, 3])
@pytest.mark.parametrize("caffe2", [False, True])
def test_non_local_blocks_of_one_pathway_are_refused_too(tmp_path, late, caffe2):
    """C2D has no temporal kernels, and Slow has them in its late stages."""
    stem, last = torch.zeros(64, 3, 1, 7, 7), torch.zeros(256, 512, late, 1, 1)
    state = {
        "s1.pathway0_stem.conv.weight": stem,
        "s4.pathway0_res0.branch2.a.weight": last,
        "s3.pathway0_nonlocal1.conv_g.weight": torch.ones(2),
    }
    if caffe2:
        state = {"conv1_w": stem, "res4_0_branch2a_w": last, "res_conv1_bn_riv": torch.ones(64)}
        state |= {"nonlocal_conv3_1_g_w": torch.ones(2)}
    path = save(tmp_path / "a.pyth", {"model_state": state})
    name = "C2D, I3D" if late == 1 else "of one pathway"
    with pytest.raises(UserError, match=f"PySlowFast {name}.*: it has non-local blocks"):
        recognise(path)


@pytest.mark.parametrize("key", ["res_conv1_bn_s", "conv1_b"])
def test_caffe2_files_of_images_are_not_taken_for_video(tmp_path, key):
    """Norms of image models are folded into a scale and a bias."""
    state = {"conv1_w": torch.zeros(64, 3, 7, 7), key: torch.zeros(64)}
    path = save(tmp_path / "R-50.pkl", {"blobs": state})
    assert recognise(path).layout.name == "a state dict of the backbone itself"


def test_x3d_is_refused_by_name(tmp_path):
    state = {
        "s1.pathway0_stem.conv_xy.weight": torch.zeros(24, 3, 1, 3, 3),
        "s1.pathway0_stem.conv.weight": torch.zeros(24, 1, 5, 1, 1),
    }
    path = save(tmp_path / "x3d_s.pyth", {"model_state": state})
    with pytest.raises(UserError, match="x3d_s.pyth: PySlowFast.*: X3D is not read in PySlowFast"):
        recognise(path)


# --- caffe2 ---


class Python2Pickler(pickle._Pickler):
    """Write text and bytes as the byte strings that Python 2 has for both."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        content = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(text)

    dispatch[str] = save_string
    dispatch[bytes] = save_string


def caffe2_name(key):
    """Return caffe2's name of a tensor, from PySlowFast's."""
    blob = {"weight": "w", "bias": "b"}
    norm = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    rest, last = key.rsplit(".", 1)
    if rest == "head.projection":
        return f"pred_{blob[last]}"
    fused = re.fullmatch(r"s(\d)_fuse\.(conv_f2s|bn)", rest)
    if fused:
        stage, part = fused.groups()
        units = {"2": 2, "3": 3, "4": 5}  # number of the last block of a stage of R50
        where = "t_pool1" if stage == "1" else f"t_res{stage}_{units[stage]}_branch2c_bn"
        return f"{where}_subsample_" + (blob[last] if part == "conv_f2s" else f"bn_{norm[last]}")
    stage, pathway, rest = re.fullmatch(r"s(\d)\.pathway(\d)_(.*)", rest).groups()
    fast = "t_" if pathway == "1" else ""
    if rest.startswith("stem"):
        return f"{fast}conv1_w" if rest == "stem.conv" else f"{fast}res_conv1_bn_{norm[last]}"
    unit, branch = re.fullmatch(r"res(\d+)\.(.*)", rest).groups()
    is_norm = branch.endswith("_bn")
    branch = branch.removesuffix("_bn").replace("branch2.", "branch2")
    end = f"bn_{norm[last]}" if is_norm else blob[last]
    return f"{fast}res{stage}_{unit}_{branch}_{end}"


def caffe2_file(path, state):
    """Write a state dict in PySlowFast's names as its model zoo's .pkl files."""
    blobs = {
        caffe2_name(key): value.detach().numpy()
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    momenta = {f"{key}_momentum": value for key, value in blobs.items() if key.endswith("_w")}
    blobs |= momenta | {"lr": np.ones(1, np.float32), "model_iter": np.zeros(1, np.int64)}
    content = {"blobs": blobs, "cfg": "MODEL: {}", "number": np.float32(0.5)}
    with open(path, "wb") as file:
        Python2Pickler(file, protocol=2).dump(content)
    return path


def test_caffe2_files_are_what_python_2_writes(tmp_path):
    path = caffe2_file(tmp_path / "a.pkl", {"s1.pathway0_stem.conv.weight": torch.ones(2, 3)})
    content = path.read_bytes()
    assert b"T\x07\x00\x00\x00conv1_w" in content
    contents = read_weights(path)
    assert torch.equal(contents.value["blobs"]["conv1_w"], torch.ones(2, 3))
    assert contents.value["number"] == np.float32(0.5)
    assert contents.foreign == ()


def test_caffe2_slowfast(tmp_path):
    original = hub("slowfast_r50")
    state = {
        pyslowfast_name(key): value
        for key, value in original.state_dict().items()
        if not key.startswith("blocks.6")
    }
    # names that PySlowFast's own converter has patterns for
    assert {
        "conv1_w",
        "t_res_conv1_bn_riv",
        "t_pool1_subsample_bn_s",
        "res2_0_branch1_bn_b",
        "t_res3_3_branch2c_bn_subsample_w",
        "res4_5_branch2c_bn_rm",
    } <= {caffe2_name(key) for key in state if not key.endswith("num_batches_tracked")}
    head = nn.Linear(2304, 400)
    path = caffe2_file(tmp_path / "a.pkl", state | prefixed(head.state_dict(), "head.projection."))
    network, model = loaded(path, "slowfast_r50")
    found = recognise(path)
    assert model.slow_frames == "linspace" and found.layout.name.endswith("SlowFast of caffe2")
    assert torch.equal(found.head["weight"], head.weight)
    assert torch.equal(found.head["bias"], head.bias)
    assert all(re.search("momentum$|^lr$|^model_iter$", key) for key in found.left_out)

    def by_linspace(x):
        return averaged(original, [x[:, :, [0, 7]], x])

    assert_same_features(network, by_linspace, 8, SLOWFAST, size=64)


@pytest.mark.parametrize("name", ["slow_r50", "c2d_r50", "i3d_r50"])
def test_caffe2_networks_of_one_pathway(tmp_path, name):
    original = hub(name)
    pooled = name != "slow_r50"
    last = 6 if pooled else 5
    state = {
        pyslowfast_name(key, pooled): value
        for key, value in original.state_dict().items()
        if not key.startswith(f"blocks.{last}")
    }
    state |= prefixed(original.blocks[last].proj.state_dict(), "head.projection.")
    path = caffe2_file(tmp_path / "a.pkl", state)
    network, _ = loaded(path, f"pytorchvideo:{name}")
    found = recognise(path)
    assert found.head["weight"].shape == (400, 2048)
    assert {"lr", "model_iter", "conv1_w_momentum"} <= set(found.left_out)
    assert_same_features(network, lambda x: averaged(original, x, last), 4, SLOWFAST, size=64)
