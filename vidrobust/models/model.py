"""Model: a backbone and a head."""

from contextlib import AbstractContextManager

from torch import Tensor, nn

from vidrobust.models.attentive_head import AttentiveHead
from vidrobust.models.backbone import Backbone
from vidrobust.models.branch_norm import use_branch
from vidrobust.models.stages import stage_tokens


class Model(nn.Module):
    """Combine a backbone and a head: clips -> embeddings (projector) or logits (classifier).

    Attributes:
        frozen: the backbone stays as it is, in eval mode, whatever the mode of the model.
    """

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.frozen = False

    def freeze_backbone(self) -> None:
        """Keep the weights and norm statistics of the backbone; only the head learns."""
        self.frozen = True
        self.backbone.requires_grad_(False)
        self.backbone.eval()

    def train(self, mode: bool = True) -> "Model":
        """Set train or eval mode; a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's outputs for clips (B, C, T, H, W) in [0, 1]."""
        return self.head(self.inputs_of_head(x))

    def inputs_of_head(self, x: Tensor) -> Tensor:
        """Return what the head takes: features (B, D), or tokens (B, N, D) of a stage."""
        if isinstance(self.head, AttentiveHead):
            return stage_tokens(self.backbone, x, [self.head.stage])[0]
        return self.backbone(x)

    def use_branch(self, branch: str) -> AbstractContextManager[None]:
        """Return a context in which forward passes use one norm branch; see `branch_norm`.

        Example:
            with model.use_branch("adv"):
                embeddings = model(clips)
        """
        return use_branch(self, branch)
