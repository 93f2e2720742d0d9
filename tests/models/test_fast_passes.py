"""The order of weights and the precision that are chosen for a network and a device."""

import copy

import pytest
import torch
from torch import nn

from tests.methods.helpers import TINY
from vidrobust import config
from vidrobust.config import EvalConfig, ModelConfig
from vidrobust.evaluation.results import identify
from vidrobust.models import build_backbone, build_model, fast_passes
from vidrobust.models.backbone import Backbone, BackboneParts
from vidrobust.models.fast_passes import arrange_passes, multiplies_bf16, to_measure
from vidrobust.models.stages import stage_tokens

CPU = torch.device("cpu")
NETWORKS = {
    # all convolutions in time are factorised
    "r2plus1d_10": {"width": 4},
    "resnet18": {"width": 4},
    # a stem of 5 x 7 x 7; cubes
    "slowfast_r50": {},
    "resnet3d_18": {"width": 4},
}
FACTORISED = ("r2plus1d_10", "resnet18")


def in_channels_last(network):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    weights = [p for p in network.parameters() if p.ndim in formats]
    assert weights
    return all(p.is_contiguous(memory_format=formats[p.ndim]) for p in weights)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("cpu_has_it", [True, False])
def test_auto_takes_bf16_where_every_convolution_is_sound_in_it(name, cpu_has_it, monkeypatch):
    monkeypatch.setattr(fast_passes, "multiplies_bf16", lambda: cpu_has_it)
    network = build_backbone(name, **NETWORKS[name])
    sound = cpu_has_it and name in FACTORISED
    assert not arrange_passes(copy.deepcopy(network), CPU, channels_last="false", amp="auto")
    for order in ("true", "auto"):
        assert arrange_passes(copy.deepcopy(network), CPU, channels_last=order, amp="auto") == sound
    for amp in ("fp32", "bf16"):  # what is asked for by name is done
        assert arrange_passes(network, CPU, channels_last="auto", amp=amp) == (amp == "bf16")


def test_one_convolution_of_another_kind_anywhere_keeps_auto_in_fp32(monkeypatch):
    monkeypatch.setattr(fast_passes, "multiplies_bf16", lambda: True)
    student, teacher = build_backbone("resnet18", width=4), build_backbone("resnet3d_18", width=4)
    both = nn.ModuleList([student, teacher])
    assert not arrange_passes(both, CPU, channels_last="auto", amp="auto")


class Reshaping(nn.Module):
    """A user's network: `view` fails on maps in channels-last order."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, (1, 3, 3))

    def forward(self, x):
        return self.conv(x).view(len(x), 4, -1).mean(2)


def test_auto_leaves_networks_of_other_code_as_they_are():
    own = Backbone(BackboneParts(Reshaping(), 4, (0.0,) * 3, (1.0,) * 3))
    arrange_passes(own, CPU, channels_last="auto", amp="fp32")
    assert not in_channels_last(own)
    assert own(torch.rand(2, 3, 2, 8, 8)).shape == (2, 4)
    arrange_passes(own, CPU, channels_last="true", amp="fp32")
    assert in_channels_last(own)


@pytest.mark.parametrize("spec", ["torchvision:r2plus1d_18", "torchvision:resnet18"])
def test_auto_knows_the_networks_of_torchvision(spec):
    backbone = build_backbone(spec)
    arrange_passes(backbone, CPU, channels_last="auto", amp="fp32")
    assert in_channels_last(backbone)


def test_auto_keeps_the_order_on_gpus():
    backbone = build_backbone("r2plus1d_10", width=4)
    arrange_passes(backbone, torch.device("cuda"), channels_last="auto", amp="fp32")
    assert not in_channels_last(backbone)


@pytest.mark.parametrize(
    ("text", "has_it"),
    [
        ("processor : 0\nflags\t\t: fpu avx512_bf16 sse\n", True),
        ("flags : fpu amx_bf16 amx_tile\n", True),
        ("flags : fpu avx512f avx512bw\n", False),
        ("Features : fp asimd bf16\n", False),
        ("", False),
    ],
)
def test_the_cpu_is_asked_for_its_instructions(text, has_it, tmp_path):
    (tmp_path / "cpuinfo").write_text(text)
    assert multiplies_bf16(tmp_path / "cpuinfo") == has_it
    assert not multiplies_bf16(tmp_path / "none")


@pytest.mark.parametrize("head", [{}, {"head": "attentive", "head_heads": 2}])
@pytest.mark.parametrize("frames", [1, 4])
def test_a_model_measured_in_bf16_gives_float32_near_those_of_fp32(head, frames):
    torch.manual_seed(0)
    options = ModelConfig(**{**vars(TINY), **head})
    model = build_model(options, "linear", 5, clip=(3, frames, 32, 32)).eval()
    x = torch.rand(3, 3, frames, 32, 32)
    outputs, gradients = {}, {}
    for amp in ("fp32", "bf16"):
        measured = to_measure(copy.deepcopy(model), CPU, EvalConfig(amp=amp))
        assert measured.backbone.bf16 == (amp == "bf16")
        clips = x.clone().requires_grad_(True)
        outputs[amp] = measured(clips)
        gradients[amp] = torch.autograd.grad(outputs[amp].square().sum(), clips)[0]
        assert {each.dtype for each in stage_tokens(measured.backbone, x)} == {torch.float32}
    # rounded in between, and no more than that
    for found, largest in ((outputs, 0.05), (gradients, 0.5)):
        assert found["bf16"].dtype == torch.float32
        error = (found["bf16"] - found["fp32"]).norm() / found["fp32"].norm()
        assert 1e-5 < error < largest


@pytest.mark.parametrize(
    ("asked", "device", "machine_has_it", "expected"),
    [
        ("auto", "cpu", False, "fp32"),
        ("auto", "cpu", True, "auto"),  # the network decides, on each such machine alike
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp32"),
        ("bf16", "cpu", False, "bf16"),
        ("fp32", "cuda", True, "fp32"),
    ],
)
def test_an_evaluation_goes_on_in_one_precision_only(
    monkeypatch, asked, device, machine_has_it, expected
):
    """Its identity holds these options, so that another precision is another evaluation."""
    monkeypatch.setattr(fast_passes, "multiplies_bf16", lambda: machine_has_it)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: machine_has_it)
    cfg = config.loads("", [f"eval.amp={asked}"])
    resolved = fast_passes.with_amp_of_machine(cfg, torch.device(device))
    assert resolved.eval.amp == expected
    identities = [identify(c, "w", [], [], []) for c in (resolved, cfg)]
    assert (identities[0] == identities[1]) == (expected == asked)
