"""Files of CoCLR give the features of its S3D in torchvision's."""

import pytest
import torch
from torch import nn

from tests.models.checkpoints.helpers import assert_same_features, loaded, prefixed, save
from tests.models.checkpoints.originals import CoclrS3d, randomise
from vidrobust.models.checkpoints import recognise
from vidrobust.utils.errors import UserError

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def original():
    network = randomise(CoclrS3d())
    # variances so small that the eps of the norms counts
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_var.mul_(0.01)
            module.weight.data.mul_(0.1)
    return network


def pretrained(original):
    """Return the state dict of CoCLR's training: two encoders with projectors, and a queue."""
    state = prefixed(original.state_dict(), "encoder_q.0.")
    state |= prefixed(nn.Conv3d(4, 4, 1).state_dict(), "encoder_q.2.")
    state |= prefixed(nn.Conv3d(4, 4, 1).state_dict(), "encoder_q.4.")
    state |= {"encoder_k.0.Conv_1a.conv1.weight": torch.zeros(64, 3, 1, 7, 7)}
    return state | {"queue": torch.zeros(4, 8), "queue_ptr": torch.zeros(1).long()}


def test_coclr(tmp_path, original):
    content = {"epoch": 300, "state_dict": pretrained(original), "best_acc": 0.5, "iteration": 9}
    path = save(tmp_path / "coclr.pth.tar", content)
    network, model = loaded(path, "torchvision:s3d")
    assert (model.mean, model.std) == IMAGENET
    assert_same_features(network, original, 16, IMAGENET, size=64)
    found = recognise(path, network.head_key)
    assert found.layout.name == "CoCLR S3D" and found.head == {}
    # eval/main_classifier.py: frames in a row, 224 of 256 pixels shrunk to 128, mean probabilities
    assert found.card == {
        "frames": 32,
        "stride": 1,
        "short_side": 146,
        "size": (128, 128),
        "view_average": "probabilities",
    }
    groups = {key.split(".")[0] for key in found.left_out if ".block" not in key}
    assert groups == {"encoder_q", "encoder_k", "queue", "queue_ptr"}


@pytest.mark.parametrize("place", [0, 1])
def test_coclr_finetuned(tmp_path, original, place):
    """The classifier stands behind dropout, or by itself."""
    head = nn.Linear(1024, 101)
    state = prefixed(original.state_dict(), "backbone.")
    state |= prefixed(head.state_dict(), f"final_fc.{place}.")
    path = save(tmp_path / "a.pth.tar", {"state_dict": state})
    network, _ = loaded(path, "torchvision:s3d")
    assert_same_features(network, original, 16, IMAGENET, size=64)
    found = recognise(path, network.head_key)
    assert torch.equal(found.head["weight"], head.weight)
    assert found.card["frames"] == 32


def test_a_classifier_behind_a_norm_is_left_out(tmp_path, original):
    state = prefixed(original.state_dict(), "backbone.")
    state |= prefixed(nn.Linear(1024, 101).state_dict(), "final_fc.1.")
    state |= prefixed(nn.BatchNorm1d(1024).state_dict(), "final_bn.")
    found = recognise(save(tmp_path / "a.pth.tar", {"state_dict": state}), "classifier.1")
    assert found.head == {} and {"final_fc.1.weight", "final_bn.weight"} <= set(found.left_out)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"encoder_q.0.Mixed_3b.gating_b0.fc.weight": torch.zeros(64, 64)},
            "CoCLR S3D: S3D-G has gates",
        ),
        (
            {"encoder_q.0.Conv_1a.conv1.weight": torch.zeros(64, 2, 1, 7, 7)},
            "CoCLR S3D: it takes inputs of 2 channels, such as optical flow",
        ),
    ],
)
@pytest.mark.parametrize("finetuned", [False, True])
def test_other_versions_of_s3d_are_refused_by_name(tmp_path, original, changes, said, finetuned):
    state = pretrained(original) | changes
    if finetuned:
        state = {key.replace("encoder_q.0.", "backbone."): value for key, value in state.items()}
        state |= {"final_fc.1.weight": torch.zeros(7, 1024)}
        said = said.replace("S3D:", "S3D, finetuned:", 1)
    path = save(tmp_path / "a.pth.tar", {"state_dict": state})
    with pytest.raises(UserError, match=f"a.pth.tar: {said}"):
        recognise(path, "classifier.1")


def test_the_residual_network_of_coclr_is_refused_by_name(tmp_path):
    state = {
        "encoder_q.0.conv1.weight": torch.zeros(64, 3, 5, 7, 7),
        "encoder_q.0.layer4.0.conv1.weight": torch.zeros(512, 1024, 3, 1, 1),
    }
    path = save(tmp_path / "a.pth.tar", {"state_dict": state})
    with pytest.raises(UserError, match=r"a.pth.tar: CoCLR R\(2D3D\)-50: R\(2D3D\)-50 is"):
        recognise(path)
