"""Files of other code give the features of their original network."""

import re
from argparse import Namespace

import pytest
import torch
from torch import nn

from tests.models.checkpoints.helpers import assert_same_features, loaded, prefixed, save
from tests.models.checkpoints.originals import (
    KuangliuResNet,
    ListResNet,
    Normalize,
    TorchvisionResNet,
    r2plus1d,
    randomise,
)
from vidrobust import config
from vidrobust.models import use_branch
from vidrobust.models.checkpoints import LAYOUTS, recognise
from vidrobust.training.weights_options import with_weights_options
from vidrobust.utils.errors import UserError

CIFAR = ([0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261])
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
NONE = ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])

# --- Images ---


@pytest.mark.parametrize("wrapped", ["module.", ""])
def test_rocl(tmp_path, wrapped):
    original = randomise(KuangliuResNet(classes=10))
    path = save(tmp_path / "ckpt.t7rocl_0", {"model": prefixed(original.state_dict(), wrapped)})
    network, model = loaded(path)
    assert (model.mean, model.std, model.stem) == (*NONE, "cifar")
    assert_same_features(network, original)
    head = recognise(path).head
    assert torch.equal(head["weight"], original.linear.weight) and len(head["bias"]) == 10


def test_supcon(tmp_path):
    original = randomise(KuangliuResNet())
    state = prefixed(original.state_dict(), "module.encoder.")
    state |= prefixed(nn.Linear(32, 8).state_dict(), "module.head.0.")
    path = save(tmp_path / "last.pth", {"opt": Namespace(lr=0.5), "model": state, "epoch": 3})
    network, _ = loaded(path)
    assert_same_features(network, original, statistics=IMAGENET)


@pytest.mark.parametrize("index", [0, 1])
def test_acl_fills_norm_branches(tmp_path, index):
    original = randomise(ListResNet(2, normalised=True))
    original.normalize = Normalize(*IMAGENET)
    path = save(tmp_path / "model.pt", {"state_dict": original.state_dict(), "epoch": 1000})
    network, model = loaded(path, branches=("adv",))
    assert (model.mean, model.std) == IMAGENET
    with use_branch(network, ("clean", "adv")[index]):
        assert_same_features(network, lambda x: original(x, index))


def test_acl_gives_its_adversarial_branch_to_a_network_without_branches(tmp_path):
    original = randomise(ListResNet(2, normalised=True))
    original.normalize = Normalize(*CIFAR)
    network, model = loaded(save(tmp_path / "model.pt", {"state_dict": original.state_dict()}))
    assert (model.mean, model.std) == CIFAR, "read from the file, not assumed"
    assert_same_features(network, lambda x: original(x, 1))


def test_advcl(tmp_path):
    original = randomise(ListResNet(3, normalised=False))
    path = save(tmp_path / "a.pth", {"model": prefixed(original.state_dict(), "module.")})
    network, model = loaded(path)
    assert (model.mean, model.std) == NONE
    assert_same_features(network, lambda x: original(x, 1))


def test_deacl_has_two_pixels_of_padding_and_its_own_statistics(tmp_path):
    original = randomise(TorchvisionResNet((3, 1, 2), classes=0))
    normalize = Normalize(*CIFAR)
    state = original.state_dict() | prefixed(normalize.state_dict(), "normalize.")
    content = {"state_dict": prefixed(state, "backbone."), "hyper_parameters": {"lr": 0.5}}
    content["state_dict"] |= prefixed(nn.Linear(32, 10).state_dict(), "classifier.")
    network, model = loaded(save(tmp_path / "deacl.ckpt", content))
    assert (model.stem_padding, model.mean, model.std) == (2, *CIFAR)
    assert_same_features(network, lambda x: original(normalize(x)))


def test_solo_learn_has_two_pixels_of_padding(tmp_path):
    original = randomise(TorchvisionResNet((3, 1, 2), classes=0))
    state = prefixed(original.state_dict(), "backbone.")
    state |= prefixed(original.state_dict(), "momentum_backbone.")
    state |= prefixed(nn.Linear(32, 10).state_dict(), "classifier.")
    state |= prefixed(nn.Linear(32, 16).state_dict(), "projector.0.")
    path = save(tmp_path / "solo.ckpt", {"state_dict": state})
    network, model = loaded(path)
    assert model.stem_padding == 2 and recognise(path).head["weight"].shape == (10, 32)
    assert_same_features(network, original, statistics=IMAGENET)


@pytest.mark.parametrize("stem", [(7, 2, 3), (3, 1, 1)])
def test_moco(tmp_path, stem):
    original = randomise(TorchvisionResNet(stem))
    state = prefixed(original.state_dict(), "module.encoder_q.")
    state |= prefixed(randomise(TorchvisionResNet(stem)).state_dict(), "module.encoder_k.")
    state |= {"module.queue": torch.randn(8, 16), "module.queue_ptr": torch.zeros(1).long()}
    path = save(tmp_path / "moco.pth.tar", {"state_dict": state, "optimizer": {}, "epoch": 200})
    network, model = loaded(path)
    assert model.stem == ("cifar" if stem[0] == 3 else "")
    assert_same_features(network, original, statistics=IMAGENET)
    text = recognise(path).text()
    assert "recognised MoCo" in text and "encoder_k (" in text and "queue (1)" in text


@pytest.mark.parametrize("net", ["", "net."])
def test_byol(tmp_path, net):
    original = randomise(TorchvisionResNet((3, 1, 1)))
    state = prefixed(original.state_dict(), f"online_encoder.{net}")
    state |= prefixed(nn.Linear(32, 8).state_dict(), "online_predictor.net.0.")
    state |= prefixed(original.state_dict(), f"target_encoder.{net}")
    network, model = loaded(save(tmp_path / "byol.pt", state))
    assert model.stem == "cifar"
    assert_same_features(network, original, statistics=IMAGENET)


def test_simsiam(tmp_path):
    original = randomise(TorchvisionResNet())
    state = prefixed(original.state_dict(), "module.encoder.")
    state |= prefixed(nn.Linear(32, 8).state_dict(), "module.predictor.0.")
    network, _ = loaded(save(tmp_path / "simsiam.pt", {"state_dict": state}))
    assert_same_features(network, original, statistics=IMAGENET)


def test_a_module_that_was_pickled_whole(tmp_path):
    original = randomise(TorchvisionResNet())
    path = save(tmp_path / "whole.pt", original)
    network, _ = loaded(path)
    assert_same_features(network, original, statistics=IMAGENET)


# --- R(2+1)D-18 ---

KINETICS = ([0.43216, 0.394666, 0.37645], [0.22803, 0.22145, 0.216989])
# name -> container and prefix, as SEVERE's loaders have them, and other keys of the file
PREFIXES = {
    "GDT": ("model", "video_network.base.", ("audio_network.base.fc.weight", "mlp_a.weight")),
    "SeLaVi": ("model", "module.video_network.base.", ("module.mlp_v.weight",)),
    "AVID-CMA": ("model", "module.video_model.", ("module.audio_model.conv1.weight",)),
    "MoCo": ("state_dict", "module.encoder_q.", ("module.encoder_k.fc.weight", "module.queue")),
}


@pytest.fixture(scope="module")
def original():
    network = randomise(r2plus1d())
    network.fc = nn.Identity()
    return network


@pytest.mark.parametrize("name", PREFIXES)
def test_prefixes_of_video_self_supervision(tmp_path, original, name):
    container, prefix, others = PREFIXES[name]
    state = prefixed(original.state_dict(), prefix) | {key: torch.ones(2) for key in others}
    path = save(tmp_path / "file.pth", {container: state, "epoch": 5})
    network, _ = loaded(path, "r2plus1d_18")
    assert name in recognise(path).layout.name
    assert_same_features(network, original, 4, KINETICS)


@pytest.mark.parametrize("prefix", ["module.base_network.", "encoder_q.encoder.base_network."])
def test_stages_by_number(tmp_path, original, prefix):
    """Pretext-Contrast and RSPNet keep the five stages in a list."""
    stages = ("stem", "layer1", "layer2", "layer3", "layer4")
    state = {}
    for number, stage in enumerate(stages):
        state |= prefixed(getattr(original, stage).state_dict(), f"{prefix}{number}.")
    state["module.other_head.weight"] = torch.ones(2, 2)
    network, _ = loaded(save(tmp_path / "stages.pt", state), "r2plus1d_18")
    assert_same_features(network, original, 4, KINETICS)


def test_tclr_has_a_dilated_last_stage(tmp_path):
    original = randomise(r2plus1d(dilated=True))
    state = prefixed(original.state_dict(), "module.0.")
    state |= {"module.1.fc1.weight": torch.ones(3, 3)}
    original.fc = nn.Identity()
    network, model = loaded(save(tmp_path / "tclr.pth", {"state_dict": state}), "r2plus1d_18")
    assert model.dilated
    assert_same_features(network, original, 16, KINETICS)


def test_ctp_has_names_of_mmaction(tmp_path, original):
    def renamed(key):
        for name, number in (("conv_s", 0), ("bn_s", 1), ("conv_t", 3), ("bn_t", 4)):
            key = re.sub(rf"^stem\.{number}\.", f"stem.{name}.", key)
            if name != "bn_t":
                key = re.sub(rf"\.conv(\d)\.0\.{number}\.", rf".conv\1.{name}.", key)
        key = re.sub(r"\.conv(\d)\.1\.", r".bn\1.", key)
        key = key.replace(".downsample.0.", ".downsample.conv.")
        return key.replace(".downsample.1.", ".downsample_bn.")

    state = {f"backbone.{renamed(key)}": value for key, value in original.state_dict().items()}
    assert "backbone.layer1.0.conv1.conv_s.weight" in state and "backbone.stem.bn_t.bias" in state
    network, _ = loaded(
        save(tmp_path / "ctp.pth", {"state_dict": state, "meta": {}}), "r2plus1d_18"
    )
    assert_same_features(network, original, 4, KINETICS)


# --- All of them ---


def test_each_layout_has_a_name_and_an_origin():
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)
    assert all(layout.origin and layout.needs for layout in LAYOUTS)


def test_another_architecture_is_refused_by_prefix(tmp_path):
    state = prefixed(randomise(TorchvisionResNet()).state_dict(), "module.encoder_q.")
    state |= {"module.encoder_k.fc.weight": torch.ones(2, 2)}
    path = save(tmp_path / "moco.pt", {"state_dict": state})
    with pytest.raises(UserError, match=r"another architecture: missing .*; unexpected"):
        loaded(path, "r2plus1d_18")


def test_an_option_that_is_set_is_kept_with_a_warning(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("vidrobust.training.weights_options.log.warning", told.append)
    path = save(tmp_path / "a.t7", {"model": KuangliuResNet().state_dict()})
    model = config.ModelConfig(backbone="resnet18", weights=str(path), std=[0.5, 0.5, 0.5])
    cfg = with_weights_options(config.Config(model=model))
    assert cfg.model.std == [0.5, 0.5, 0.5] and cfg.model.mean == [0.0, 0.0, 0.0]
    assert len(told) == 1 and "model.std=[0.5, 0.5, 0.5], but" in told[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "loss": 0.5}, "holds no state dict of a model, but the entries epoch, loss"),
        ([torch.ones(2)], "but an object of list"),
        (torch.ones(2), "but an object of Tensor"),
        (Namespace(a=1), "but an object of argparse.Namespace"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path, content, said):
    with pytest.raises(UserError, match=said):
        recognise(save(tmp_path / "a.pt", content))
