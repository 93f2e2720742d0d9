"""Files of 3-D ResNets give the features of their authors' networks."""

import pytest
import torch
from torchvision.models.video import r3d_18

from tests.models.checkpoints.helpers import loaded, prefixed, save
from tests.models.checkpoints.originals import (
    HaraBasic,
    HaraBottleneck,
    HaraResNet,
    HaraResNeXt,
    randomise,
)
from vidrobust.models import build_backbone
from vidrobust.models.checkpoints import recognise
from vidrobust.utils.errors import UserError

KINETICS = ([0.4345, 0.4051, 0.3775], [0.2768, 0.2713, 0.2737])
# backbone -> block, depths and a width for tests
NETWORKS = {
    "resnet3d_18": (HaraBasic, (2, 2, 2, 2), 4),
    "resnet3d_34": (HaraBasic, (3, 4, 6, 3), 4),
    "resnet3d_50": (HaraBottleneck, (3, 4, 6, 3), 4),
    "resnext3d_101": (HaraResNeXt, (3, 4, 23, 3), 16),
}


def hara_file(path, original):
    """Write a file as the code of Hara et al. and MARS does."""
    state = prefixed(original.state_dict(), "module.")
    content = {"epoch": 200, "arch": "resnet-18", "state_dict": state, "optimizer": {}}
    return save(path, content)


@pytest.mark.parametrize("frames", [1, 2, 9])
@pytest.mark.parametrize("name", NETWORKS)
def test_hara(tmp_path, name, frames):
    block, depths, width = NETWORKS[name]
    original = randomise(HaraResNet(block, depths, width))
    path = hara_file(tmp_path / "save_200.pth", original)
    network, model = loaded(path, name)
    assert model.width == width
    found = recognise(path)
    assert torch.equal(found.head["weight"], original.fc.weight) and found.left_out == []
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in KINETICS)
    clips = torch.rand(2, 3, frames, 48, 48)
    with torch.no_grad():
        expected = original((clips - mean) / std)
        assert torch.allclose(network(clips), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_published_sizes_have_the_parameters_of_the_original(name):
    block, depths, _ = NETWORKS[name]
    with torch.device("meta"):
        original = HaraResNet(block, depths, 64)
    del original.fc
    assert count(build_backbone(name)) == count(original)


def test_the_3d_resnet_18_is_that_of_torchvision_but_for_its_stem():
    reference = r3d_18()
    others = count(reference.fc) + count(reference.stem[0])
    stem = 64 * 3 * 7 * 7 * 7
    assert count(build_backbone("resnet3d_18")) == count(reference) - others + stem


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_shortcuts_without_parameters_are_refused_by_name(tmp_path):
    state = HaraResNet(HaraBasic, (2, 2, 2, 2)).state_dict()
    state = {key: value for key, value in state.items() if "downsample" not in key}
    path = save(tmp_path / "a.pth", {"state_dict": state})
    with pytest.raises(UserError, match=r"3D-ResNets-PyTorch .*: its shortcuts are of type A"):
        loaded(path, "resnet3d_18")


def test_optical_flow_is_refused_by_name(tmp_path):
    """MARS has a network of flow beside that of RGB."""
    state = HaraResNet(HaraBasic, (2, 2, 2, 2)).state_dict()
    state["conv1.weight"] = state["conv1.weight"][:, :2].clone()
    path = save(tmp_path / "a.pth", {"state_dict": state})
    with pytest.raises(UserError, match="inputs of 2 channels, such as optical flow, not RGB"):
        loaded(path, "resnet3d_18")


def test_another_depth_is_refused_in_one_line(tmp_path):
    path = hara_file(tmp_path / "a.pth", HaraResNet(HaraBasic, (2, 2, 2, 2)))
    with pytest.raises(UserError, match="another architecture: missing layer1") as error:
        loaded(path, "resnet3d_34")
    assert "\n" not in str(error.value)
