"""Models of other packages: features and head give the logits of the whole network."""

import pytest
import torch
from torch import nn

import vidrobust.models.sources.torchvision as torchvision_source
from vidrobust import checkpoint, config
from vidrobust.models import build_backbone, build_model, configured_backbone
from vidrobust.models.input_spec import InputSpec
from vidrobust.models.sources import SOURCES, build_source
from vidrobust.utils.errors import UserError

# spec -> shape of clips that the original takes: its own heads need their own size
VIDEO = {
    "torchvision:r3d_18": (4, 32),
    "torchvision:mc3_18": (1, 32),
    "torchvision:r2plus1d_18": (4, 32),
    "torchvision:s3d": (16, 224),
    "torchvision:mvit_v1_b": (16, 224),
    "torchvision:mvit_v2_s": (16, 224),
    "torchvision:swin3d_t": (4, 64),
    "pytorchvideo:c2d_r50": (8, 256),
    "pytorchvideo:slow_r50": (8, 256),
    "pytorchvideo:i3d_r50": (8, 256),
    "pytorchvideo:slowfast_r50": (32, 256),
    "pytorchvideo:r2plus1d_r50": (16, 256),
    "pytorchvideo:x3d_xs": (4, 160),
    "pytorchvideo:mvit_base_16x4": (16, 224),
}
IMAGES = {
    "torchvision:alexnet": 64,
    "torchvision:resnet18": 32,
    "torchvision:vgg11": 32,
    "torchvision:densenet121": 32,
    "torchvision:mobilenet_v3_small": 32,
    "torchvision:convnext_tiny": 32,
    "torchvision:vit_b_32": 224,
    "torchvision:swin_t": 32,
    "torchvision:efficientnet_b0": 32,
    "torchvision:regnet_y_400mf": 32,
    "torchvision:shufflenet_v2_x0_5": 32,
    "torchvision:googlenet": 64,
    "torchvision:inception_v3": 96,
    "torchvision:maxvit_t": 224,
}


def original(spec):
    """Return the other package's own model, with random weights."""
    source, name = spec.split(":")
    if source == "torchvision":
        return torchvision_source.torchvision.models.get_model(name, weights=None).eval()
    import pytorchvideo.models.hub as hub

    return getattr(hub, name)(False).eval()


def fill(module):
    """Give norms statistics that are not those of a fresh network."""
    torch.manual_seed(0)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and tensor.ndim == 1:
            with torch.no_grad():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return module


def logits_of(network, spec, x):
    """Return the logits of the original, without the softmax that some apply in evaluation."""
    if spec.startswith("pytorchvideo:"):
        for module in network.modules():
            if hasattr(module, "activation") and hasattr(module, "proj"):
                module.activation = None
        if "slowfast" in spec:
            return network([x[:, :, ::4], x])
    return network(x)


def loaded_like(spec, whole):
    """Return the source's model with the weights of the original, head included."""
    model = build_source(spec)
    key = model.network.head_key
    state = whole.state_dict()
    head = {name[len(key) + 1 :]: v for name, v in state.items() if name.startswith(f"{key}.")}
    rest = {name: v for name, v in state.items() if not name.startswith(f"{key}.")}
    checkpoint.load_state(model.network.network, rest, spec)
    model.head.load_state_dict(
        {name: v.view_as(getattr(model.head, name)) for name, v in head.items()}
    )
    return model


@pytest.mark.parametrize("spec", VIDEO)
def test_features_and_head_of_video_networks_give_the_logits_of_the_whole(spec):
    frames, size = VIDEO[spec]
    whole = fill(original(spec))
    model = loaded_like(spec, whole)
    x = torch.randn(1, 3, frames, size, size)
    with torch.no_grad():
        features = model.network.eval()(x)
        assert features.shape == (1, model.dim)
        expected = logits_of(whole, spec, x)
        assert torch.allclose(model.head(features), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spec", IMAGES)
def test_image_classifiers_average_their_frames(spec):
    size = IMAGES[spec]
    whole = fill(original(spec))
    model = loaded_like(spec, whole)
    x = torch.randn(2, 3, 2, size, size)
    with torch.no_grad():
        features = model.network.eval()(x)
        assert features.shape == (2, model.dim)
        expected = (whole(x[:, :, 0]) + whole(x[:, :, 1])) / 2
        assert torch.allclose(model.head(features), expected, rtol=1e-3, atol=1e-4)


def test_the_input_card_comes_from_the_weights_of_the_package():
    card = build_source("torchvision:r2plus1d_18").input
    assert (card.frames, card.fps, card.resize, card.size) == (16, 15.0, (128, 171), (112, 112))
    assert card.published.acc == pytest.approx(0.67463) and card.published.views == "5x1"
    assert len(card.classes) == 400 and card.classes[0] == "abseiling"
    card = build_source("torchvision:swin3d_t").input
    assert (card.frames, card.short_side, card.resize) == (32, 256, None)
    card = build_source("pytorchvideo:slow_r50").input
    assert (card.frames, card.stride, card.mean) == (8, 8, (0.45,) * 3)


def test_a_source_is_a_backbone_that_normalises_as_its_card_says(tmp_path):
    whole = fill(original("torchvision:r3d_18"))
    path = tmp_path / "r3d_18-b3b3357e.pth"
    torch.save(whole.state_dict(), path)
    backbone = configured_backbone(config.ModelConfig(backbone="torchvision:r3d_18")).eval()
    state = checkpoint.backbone_state(str(path), head_key=backbone.head_key)
    checkpoint.load_state(backbone.stored, state, str(path))
    clips = torch.rand(2, 3, 2, 16, 16)
    card = build_source("torchvision:r3d_18").input
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (card.mean, card.std))
    whole.fc = nn.Identity()
    with torch.no_grad():
        assert torch.allclose(backbone(clips), whole((clips - mean) / std), atol=1e-5)
    x = torch.rand(1, 3, 1, 16, 16, requires_grad=True)
    backbone(x).sum().backward()
    assert x.grad.abs().sum() > 0, "gradients reach the pixels, for T = 1 too"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("torchvison:r3d_18", "torchvision"),
        ("torchvision:r3d18", "r3d_18"),
        ("pytorchvideo:slowfast_r5", "slowfast_r50"),
        ("torchvision:r3d_18@KINETICS400", "KINETICS400_V1"),
        ("pytorchvideo:slow_r50@V1", "--weights FILE"),
    ],
)
def test_unknown_names_suggest_the_nearest(spec, said):
    with pytest.raises(UserError, match=said) as error:
        build_source(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", [name for name, source in SOURCES.items() if source.package])
def test_a_package_that_is_missing_is_named_with_its_extra(source, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install 'vidrobust\[{SOURCES[source].extra}\]'"):
        build_source(f"{source}:any")


@pytest.mark.parametrize(
    ("spec", "shape", "said"),
    [
        (
            "torchvision:mvit_v2_s",
            (8, 224),
            "takes 16 frames of 224 x 224 pixels, not 8 frames",
        ),
        ("torchvision:mvit_v2_s", (16, 112), "set data.frames=16 and data.size=224"),
        ("torchvision:s3d", (4, 224), "takes at least"),
        ("pytorchvideo:i3d_r50", (1, 64), "takes at least 2 frames, not 1"),
    ],
)
def test_clips_that_do_not_fit_are_refused(spec, shape, said):
    frames, size = shape
    with pytest.raises(UserError, match=said):
        build_source(spec).network(torch.rand(1, 3, frames, size, size))


def test_an_option_of_other_backbones_is_refused():
    with pytest.raises(UserError, match="model.width: torchvision:r3d_18 has no such option"):
        build_backbone("torchvision:r3d_18", width=8)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"layout": "THWC"}, "layout='THWC': use BCTHW or BTCHW"),
        ({"channels": "gbr"}, "use rgb or bgr"),
        ({"std": (0.0, 1.0, 1.0)}, "deviations must be above 0"),
        ({"mean": (0.5, 0.5)}, "give three numbers each"),
        ({"range": (1.0, 0.0)}, "white above black"),
    ],
)
def test_an_impossible_card_is_refused(values, said):
    with pytest.raises(ValueError, match=said):
        InputSpec(**values)


def test_range_and_normalisation_are_one_map():
    card = InputSpec(range=(0.0, 255.0), mean=(127.5,) * 3, std=(63.75,) * 3)
    assert card.unit_mean == (0.5,) * 3 and card.unit_std == (0.25,) * 3
    signed = InputSpec(range=(-1.0, 1.0))
    assert signed.unit_mean == (0.5,) * 3 and signed.unit_std == (0.5,) * 3


def test_a_network_without_batch_norms_has_no_norm_branches():
    cfg = config.ModelConfig(backbone="torchvision:swin3d_t")
    with pytest.raises(
        UserError, match="torchvision:swin3d_t: has no batch norms, .* branches adv"
    ):
        build_model(cfg, "projector", branches=["adv"])
    assert build_model(cfg, "projector").backbone.dim == 768


def test_norms_of_a_source_get_branches():
    cfg = config.ModelConfig(backbone="torchvision:r3d_18")
    model = build_model(cfg, "projector", branches=["adv"]).eval()
    clips = torch.rand(2, 3, 2, 16, 16)
    with torch.no_grad():
        for name, tensor in model.named_buffers():
            if "branches.adv" in name and "running_mean" in name:
                tensor.add_(1)
        with model.use_branch("adv"):
            adversarial = model.backbone(clips)
        assert not torch.allclose(adversarial, model.backbone(clips))
