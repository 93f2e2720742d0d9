"""Attentive head: against loops, its initial weights, every kind of backbone, what it refuses."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.helpers import tiny_videomae
from vidrobust.config import ModelConfig
from vidrobust.models import AttentiveHead, add_branches, build_model
from vidrobust.utils.errors import UserError


def layer_norm(row, norm):
    mean = sum(row) / len(row)
    variance = sum((value - mean) ** 2 for value in row) / len(row)
    return [
        (value - mean) / math.sqrt(variance + norm.eps) * float(w) + float(b)
        for value, w, b in zip(row, norm.weight, norm.bias, strict=True)
    ]


def affine(row, layer):
    return [
        sum(float(w) * value for w, value in zip(weights, row, strict=True)) + float(b)
        for weights, b in zip(layer.weight, layer.bias, strict=True)
    ]


def attend(query, keys, values, heads):
    """Return the output of attention for one query, by loops over heads and tokens."""
    size = len(query) // heads
    output = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = [
            sum(a * b for a, b in zip(query[part], key[part], strict=True)) / math.sqrt(size)
            for key in keys
        ]
        exps = [math.exp(score) for score in scores]
        weights = [each / sum(exps) for each in exps]
        output += [
            sum(w * value[h * size + d] for w, value in zip(weights, values, strict=True))
            for d in range(size)
        ]
    return output


def plus(a, b):
    return [x + y for x, y in zip(a, b, strict=True)]


def mlp(row, block):
    hidden = affine(layer_norm(row, block.norm2), block.mlp.widen)
    hidden = [0.5 * h * (1 + math.erf(h / math.sqrt(2))) for h in hidden]
    return affine(hidden, block.mlp.shrink)


def by_loops(head, tokens, heads):
    """Return the logits of the tokens of one clip, as the released code computes them."""
    tokens = tokens.tolist()
    dim = len(tokens[0])
    for block in head.blocks:
        qkv = [affine(layer_norm(row, block.norm1), block.qkv) for row in tokens]
        keys = [row[dim : 2 * dim] for row in qkv]
        values = [row[2 * dim :] for row in qkv]
        moved = []
        for token, row in zip(tokens, qkv, strict=True):
            attended = affine(attend(row[:dim], keys, values, heads), block.out)
            token = plus(token, attended)
            moved.append(plus(token, mlp(token, block)))
        tokens = moved
    kv = [affine(layer_norm(row, head.cross.norm1), head.cross.kv) for row in tokens]
    query = head.query[0, 0].tolist()
    attended = attend(
        affine(query, head.cross.q), [row[:dim] for row in kv], [row[dim:] for row in kv], heads
    )
    query = plus(query, attended)
    query = plus(query, mlp(query, head.cross))
    return affine(query, head.linear)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("blocks", [1, 4])
@torch.no_grad()
def test_its_logits_are_those_of_loops(blocks):
    torch.manual_seed(0)
    head = AttentiveHead(6, 3, blocks=blocks, heads=2, mlp_ratio=1.5)
    for p in head.parameters():
        p.normal_(std=0.5)
    tokens = torch.randn(2, 5, 6)
    for logits, clip in zip(head(tokens), tokens, strict=True):
        assert logits.tolist() == pytest.approx(by_loops(head, clip, 2), abs=1e-9)


def test_it_has_the_parameters_of_the_released_classifiers():
    """ViT-L with 174 classes: 3 blocks of 12 D^2 and a cross-attention block of 11 D^2."""
    with torch.device("meta"):
        head = AttentiveHead(1024, 174, blocks=4, heads=16)
    d = 1024
    norms_and_biases = 3 * (13 * d) + (12 * d)
    expected = 3 * 12 * d**2 + 11 * d**2 + norms_and_biases + d + 174 * (d + 1)
    assert sum(p.numel() for p in head.parameters()) == expected


def test_its_initial_weights_are_scaled_as_released():
    torch.manual_seed(0)
    head = AttentiveHead(64, 3, blocks=4, heads=1)
    deviations = [float(block.out.weight.detach().std()) / 0.02 for block in head.blocks]
    assert deviations == pytest.approx([1 / math.sqrt(2 * n) for n in (1, 2, 3)], rel=0.05)
    assert float(head.cross.mlp.shrink.weight.detach().std()) == pytest.approx(
        0.02 / math.sqrt(6), rel=0.05
    )
    alone = AttentiveHead(64, 3)
    assert float(alone.cross.mlp.shrink.weight.detach().std()) == pytest.approx(
        0.02 / math.sqrt(2), rel=0.05
    )
    assert float(alone.query.detach().std()) == pytest.approx(0.02, rel=0.3)


@pytest.fixture(scope="module")
def videomae(tmp_path_factory):
    """A tiny VideoMAE of transformers."""
    folder = tmp_path_factory.mktemp("hf") / "videomae"
    return tiny_videomae(folder, hidden_size=16, intermediate_size=32, num_frames=4, num_labels=5)


@pytest.mark.parametrize(
    ("options", "frames", "channels"),
    [
        ({"backbone": "r2plus1d_10", "width": 4}, 4, 32),
        ({"backbone": "r2plus1d_10", "width": 4, "head_stage": "3"}, 4, 16),
        ({"backbone": "resnet18", "width": 8, "stem": "cifar"}, 1, 64),
        ({"backbone": "slowfast_r50"}, 8, 2304),
        ({"backbone": "hf"}, 4, 16),
    ],
    ids=["r2plus1d", "a stage", "image", "slowfast", "videomae"],
)
def test_it_takes_tokens_of_every_kind_of_backbone(options, frames, channels, videomae):
    options = dict(options)
    if options["backbone"] == "hf":
        options["backbone"] = f"hf:{videomae}"
    cfg = ModelConfig(head="attentive", **options)
    model = build_model(cfg, "linear", 5, clip=(3, frames, 32, 32)).eval()
    assert model.head.query.shape[-1] == channels
    x = torch.rand(2, 3, frames, 32, 32, requires_grad=True)
    logits = model(x)
    assert logits.shape == (2, 5)
    # an attack has a gradient, and clips do not depend on each other
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert bool((x.grad != 0).any())
    assert torch.allclose(model(x[:1])[0], logits[0], atol=1e-4)


def test_branches_have_their_own_tokens_and_average_to_one():
    cfg = ModelConfig(backbone="r2plus1d_10", width=4, head="attentive")
    model = build_model(cfg, "linear", 3, clip=(3, 2, 16, 16))
    add_branches(model.backbone, ["adv"])
    model.eval()
    x = torch.rand(2, 3, 2, 16, 16)
    for name, buffer in model.named_buffers():
        if ".branches.adv.running_mean" in name:
            buffer.add_(0.5)
    outputs = {}
    for branch in ("clean", "adv", "average"):
        with model.use_branch(branch), torch.no_grad():
            outputs[branch] = model.inputs_of_head(x)
    assert not torch.allclose(outputs["clean"], outputs["adv"])
    mean = (outputs["clean"] + outputs["adv"]) / 2
    assert torch.allclose(outputs["average"], mean, atol=1e-6)


def test_what_does_not_fit_is_refused_by_name():
    def build(**options):
        cfg = ModelConfig(backbone="r2plus1d_10", width=4, head="attentive", **options)
        build_model(cfg, "linear", 3, clip=(3, 2, 16, 16))

    with pytest.raises(UserError, match=r"model.head_heads=5: the tokens have 32 channels"):
        build(head_heads=5)
    with pytest.raises(UserError, match=r"no module 'layer9'; its stages are 0, 1"):
        build(head_stage="layer9")


def test_building_a_head_uses_no_random_numbers_for_its_channels():
    options = {"backbone": "r2plus1d_10", "width": 4}
    states = []
    for head in ("linear", "attentive"):
        torch.manual_seed(0)
        model = build_model(ModelConfig(head=head, **options), "linear", 3, clip=(3, 2, 16, 16))
        states.append(model.backbone.state_dict())
        assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_the_classifier_may_begin_small_or_drop_features():
    options = {"backbone": "r2plus1d_10", "width": 4}
    for head in ("linear", "attentive"):
        cfg = ModelConfig(head=head, head_scale=0.0, **options)
        model = build_model(cfg, "linear", 3, clip=(3, 2, 16, 16)).eval()
        assert not model(torch.rand(2, 3, 2, 16, 16)).any()
    model = build_model(ModelConfig(head_dropout=0.5, **options), "linear", 3)
    features = torch.ones(1, 32)
    kept = {float(model.head(features)[0, 0]) for _ in range(8)}
    assert len(kept) > 1
    assert torch.equal(
        model.eval().head(features), F.linear(features, model.head.weight, model.head.bias)
    )
