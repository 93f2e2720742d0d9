"""A measured model has the logits of the network that wrote its file."""

import pytest
import torch
from torch import nn

from tests.models.checkpoints.helpers import prefixed, save, timesformer_folder, videomae_folder
from tests.models.checkpoints.originals import (
    CoclrS3d,
    HaraBasic,
    HaraResNet,
    TimeSformer,
    VideoMae,
    randomise,
)
from vidrobust import config
from vidrobust.evaluation.measured_model import load_source

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
KINETICS = ([0.4345, 0.4051, 0.3775], [0.2768, 0.2713, 0.2737])
# PySlowFast's defaults, which a file of TimeSformer says
CFG = "DATA: {MEAN: [0.45, 0.45, 0.45], STD: [0.225, 0.225, 0.225]}"


def videomae(path):
    network = randomise(VideoMae(classes=7))
    save(path / "a.pth", {"model": network.state_dict()})
    return videomae_folder(path / "config", num_labels=7), network, network.head, IMAGENET, 32


def timesformer(path):
    network = randomise(TimeSformer())
    state = prefixed(network.state_dict(), "model.")
    save(path / "a.pth", {"model_state": state, "cfg": CFG})
    statistics = ([0.45] * 3, [0.225] * 3)
    return timesformer_folder(path / "config"), network, network.head, statistics, 32


def hara(path):
    network = randomise(HaraResNet(HaraBasic, (2, 2, 2, 2)))
    save(path / "a.pth", {"state_dict": prefixed(network.state_dict(), "module.")})
    return "vidrobust:resnet3d_18", network, network.fc, KINETICS, 48


def coclr(path):
    network = randomise(CoclrS3d())
    head = nn.Linear(1024, 7)
    state = prefixed(network.state_dict(), "backbone.")
    state |= prefixed(head.state_dict(), "final_fc.1.")
    save(path / "a.pth", {"state_dict": state})
    return "torchvision:s3d", network, head, IMAGENET, 64


@pytest.mark.parametrize("write", [videomae, timesformer, hara, coclr])
def test_logits(tmp_path, write):
    spec, network, head, statistics, size = write(tmp_path)
    measured = load_source(config.Config(), spec, str(tmp_path / "a.pth"))
    assert isinstance(measured.model.head, nn.Linear) and measured.model.head.out_features == 7
    frames = 16 if write is coclr else 4
    clips = torch.rand(2, 3, frames, size, size)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in statistics)
    with torch.no_grad():
        features = network.eval()((clips - mean) / std)
        logits = measured.model.eval()(clips)
        assert torch.allclose(logits, head(features), rtol=1e-4, atol=1e-5)
    assert logits.std() > 0.01
