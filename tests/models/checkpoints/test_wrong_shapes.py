"""Tensors of wrong shapes under the names of a layout are refused, as any other weights are."""

import pytest
import torch

from tests.models.checkpoints.helpers import prefixed, save
from tests.models.checkpoints.originals import (
    CoclrS3d,
    HaraBasic,
    HaraResNet,
    Mvit,
    TimeSformer,
    VideoMae,
    VJepa2,
)
from vidrobust.models.checkpoints import recognise
from vidrobust.utils.errors import UserError

# names by which files are recognised, in the containers and with the prefixes that they have
KEYS = {
    "VideoMAE": lambda: [*VideoMae(7).state_dict(), "pos_embed"],
    "VideoMAE, pretrained": lambda: [*prefixed(VideoMae().state_dict(), "encoder."), "mask_token"],
    "V-JEPA 2": lambda: [*prefixed(VJepa2().state_dict(), "backbone."), "backbone.pos_embed"],
    "MViT": lambda: list(Mvit(second=False).state_dict()),
    "TimeSformer": lambda: list(TimeSformer().state_dict()),
    "CoCLR": lambda: list(prefixed(CoclrS3d().state_dict(), "encoder_q.0.")),
    "CoCLR, residual": lambda: ["encoder_q.0.conv1.weight", "encoder_q.0.layer4.0.conv1.weight"],
    "Hara": lambda: list(HaraResNet(HaraBasic, (1, 1, 1, 1)).state_dict()),
    "SlowFast": lambda: [
        "s1.pathway0_stem.conv.weight",
        "s1.pathway1_stem.conv.weight",
        "s1_fuse.conv_f2s.weight",
    ],
    "Slow": lambda: ["s1.pathway0_stem.conv.weight", "s4.pathway0_res0.branch2.a.weight"],
    "caffe2": lambda: ["conv1_w", "res_conv1_bn_riv", "res4_0_branch2a_w"],
    "mmaction2 SlowOnly": lambda: [
        "backbone.conv1.conv.weight",
        "backbone.layer2.0.conv1.conv.weight",
        "backbone.layer3.0.conv1.conv.weight",
        "backbone.layer4.0.conv1.conv.weight",
        "cls_head.fc_cls.weight",
    ],
    "mmaction2 Swin": lambda: [
        "backbone.layers.0.blocks.0.attn.relative_position_bias_table",
        "backbone.patch_embed.proj.bias",
        "cls_head.fc_cls.weight",
    ],
}


@pytest.mark.parametrize("shape", [(), (1,), (2, 1), (3, 2, 1), (2, 1, 5, 1, 1), (0, 3)])
@pytest.mark.parametrize("name", KEYS)
def test_wrong_shapes_are_no_error_of_the_program(tmp_path, name, shape):
    state = {key: torch.zeros(shape) for key in KEYS[name]()}
    path = save(tmp_path / "a.pth", {"state_dict": state})
    try:
        found = recognise(path, "classifier")
    except UserError as error:
        assert "a.pth" in str(error) and "\n" not in str(error)
    else:
        assert found.text().startswith("recognised")
        assert set(found.backbone) | set(found.head) | set(found.left_out)
