"""Write files of other code, load them as the package does, and compare features."""

import torch

from tests.models.checkpoints.originals import WIDTH
from vidrobust import checkpoint, config
from vidrobust.models import add_branches, configured_backbone
from vidrobust.training.weights_options import with_weights_options


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def loaded(path, backbone="resnet18", branches=()):
    """Return the configured backbone with the weights of a file, as training builds it."""
    width = WIDTH if backbone == "resnet18" else 0
    model = config.ModelConfig(backbone=backbone, width=width, weights=str(path))
    cfg = with_weights_options(config.Config(model=model))
    network = configured_backbone(cfg.model)
    if branches:
        add_branches(network, branches)
    names = ("clean", *branches)
    state = checkpoint.backbone_state(str(path), branches=names, head_key=network.head_key)
    checkpoint.load_state(network.stored, state, str(path))
    return network.eval(), cfg.model


def assert_same_features(network, original, frames=1, statistics=None, size=32):
    """Compare on clips in [0, 1]; `statistics`: mean and std of the original's data loader."""
    clips = torch.rand(2, 3, frames, size, size)
    x = clips
    if statistics:
        mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in statistics)
        x = (x - mean) / std
    with torch.no_grad():
        expected = original(x[:, :, 0] if frames == 1 else x)
        assert torch.allclose(network(clips), expected, rtol=1e-4, atol=1e-5)


def save(path, content):
    torch.save(content, path)
    return path
