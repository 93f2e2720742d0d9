"""Small models, saved by save_pretrained, give the logits of transformers itself."""

import json

import pytest
import torch

from vidrobust import config
from vidrobust.models import configured_backbone
from vidrobust.models.sources import build_source
from vidrobust.utils.errors import UserError

transformers = pytest.importorskip("transformers")

SMALL = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "image_size": 32,
}
LABELS = {"id2label": {0: "archery", 1: "bowling", 2: "yoga"}, "num_labels": 3}


def small(kind):
    """Return a small model for video classification."""
    if kind == "videomae":
        options = transformers.VideoMAEConfig(
            **SMALL, **LABELS, patch_size=8, num_frames=4, use_mean_pooling=True
        )
        return transformers.VideoMAEForVideoClassification(options)
    if kind == "timesformer":
        options = transformers.TimesformerConfig(**SMALL, **LABELS, patch_size=8, num_frames=4)
        return transformers.TimesformerForVideoClassification(options)
    if kind == "vivit":
        options = transformers.VivitConfig(**SMALL, **LABELS, tubelet_size=[2, 8, 8], num_frames=4)
        return transformers.VivitForVideoClassification(options)
    options = transformers.VJEPA2Config(
        **LABELS,
        crop_size=32,
        frames_per_clip=4,
        patch_size=8,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_pooler_layers=1,
        pred_hidden_size=16,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    return transformers.VJEPA2ForVideoClassification(options)


KINDS = ("videomae", "timesformer", "vivit", "vjepa2")


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_head_give_the_logits_of_the_whole(tmp_path, kind):
    torch.manual_seed(0)
    whole = small(kind).eval()
    whole.save_pretrained(tmp_path)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": 36}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    model = build_source(f"hf:{tmp_path}")
    card = model.input
    assert (card.frames, card.size, card.short_side) == (4, (32, 32), 36)
    assert card.mean == (0.5,) * 3 and card.layout == "BTCHW"
    assert card.classes == ("archery", "bowling", "yoga")
    clips = torch.rand(2, 3, 4, 32, 32)
    backbone = configured_backbone(config.ModelConfig(backbone=f"hf:{tmp_path}")).eval()
    pixels = ((clips - 0.5) / 0.25).transpose(1, 2)
    with torch.no_grad():
        expected = whole(pixels).logits
        assert torch.allclose(model.head(backbone(clips)), expected, atol=1e-5)
    clips.requires_grad_(True)
    backbone(clips)[:, 0].sum().backward()  # all features of a layer norm have a constant sum
    assert clips.grad.abs().sum() > 0


def test_a_model_without_a_trained_classifier_has_no_head(tmp_path):
    options = small("videomae").config
    transformers.VideoMAEModel(options).save_pretrained(tmp_path)
    assert build_source(f"hf:{tmp_path}").head is None


def test_random_weights_differ(tmp_path):
    small("videomae").save_pretrained(tmp_path)
    weights = [
        build_source(f"hf:{tmp_path}{which}").network.state_dict() for which in ("", "@random")
    ]
    key = "network.videomae.embeddings.patch_embeddings.projection.weight"
    assert not torch.equal(weights[0][key], weights[1][key])


def test_other_clips_and_other_models_are_refused(tmp_path):
    small("videomae").save_pretrained(tmp_path / "v")
    with pytest.raises(UserError, match="takes 4 frames of 32 x 32 pixels, not 8 frames"):
        build_source(f"hf:{tmp_path}/v").network(torch.rand(1, 3, 8, 32, 32))
    bert = transformers.BertConfig(
        num_hidden_layers=1, hidden_size=8, num_attention_heads=1, intermediate_size=8
    )
    transformers.BertModel(bert).save_pretrained(tmp_path / "b")
    with pytest.raises(UserError, match="a model of type bert; video models are videomae"):
        build_source(f"hf:{tmp_path}/b")
    with pytest.raises(UserError, match="hf:.*nothing") as error:
        build_source(f"hf:{tmp_path}/nothing")
    assert "\n" not in str(error.value)
