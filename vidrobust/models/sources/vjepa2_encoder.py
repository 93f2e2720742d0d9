"""Encoder of V-JEPA 2 (Assran et al. 2025) without the attentive pooler of its classifiers."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import VJEPA2Config, VJEPA2Model, VJEPA2PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class VJepa2Encoder(VJEPA2PreTrainedModel):
    """Classify the mean of the encoder's tokens, for weights of pretraining alone.

    It takes the place of `VJEPA2ForVideoClassification`, whose pooler pretraining does not train.
    Its state dict has the same names.

    Args:
        config: of the model.
    """

    def __init__(self, config: VJEPA2Config) -> None:
        super().__init__(config)
        model: Any = VJEPA2Model(config)
        model.predictor = nn.Identity()  # predicts masked tokens in pretraining
        self.vjepa2 = model
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 2)
        self.post_init()

    @classmethod
    def from_config(cls, config: VJEPA2Config) -> "VJepa2Encoder":
        """Return a model with random weights, as the classes of `transformers.Auto...` do."""
        return cls(config)

    def forward(self, pixel_values_videos: Tensor, **options: Any) -> ImageClassifierOutput:
        """Return the logits of clips (B, T, C, H, W)."""
        output = self.vjepa2(pixel_values_videos, skip_predictor=True)
        features = torch.mean(output.last_hidden_state, dim=1)
        return ImageClassifierOutput(logits=self.classifier(features))
