"""Heads: linear layers and projectors."""

from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust.models.attentive_head import AttentiveHead


def projector(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Return the two-layer MLP of SimCLR and CLAE: (N, dim) -> (N, out), not normalised.

    See Chen et al. 2020 and Ho and Vasconcelos 2020.

    Args:
        dim: input features.
        hidden: width of the hidden layer; 0: a single linear layer, as in the Plain and UEL
            variants of CLAE.
        out: width of the embedding.
    """
    if hidden == 0:
        return nn.Sequential(nn.Linear(dim, out))
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out))


def normed_mlp(
    dim: int, hidden: int, out: int, *, layers: int = 2, norm_out: str = ""
) -> nn.Sequential:
    """Return linear layers with batch norm and ReLU between them: (N, dim) -> (N, out).

    BYOL's projector and predictor have two layers, as has every projector with `model.head_norm`.
    SimSiam's projector has three layers, and ends with a norm without weights.

    Args:
        dim: input features.
        hidden: width of the hidden layers.
        out: width of the embedding.
        layers: number of linear layers, at least 1.
        norm_out: norm at the end: "plain" (without weights), "affine" (with weights, as in ACL) or
            "" (none).
    """
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        # A bias before a batch norm has no effect, because the norm subtracts the mean.
        parts += [nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        dim = hidden
    parts.append(nn.Linear(dim, out, bias=not norm_out))
    if norm_out:
        parts.append(nn.BatchNorm1d(out, affine=norm_out == "affine"))
    return nn.Sequential(*parts)


class DroppedLinear(nn.Linear):
    """Linear layer with dropout of its inputs: (N, dim) -> (N, classes)."""

    def __init__(self, dim: int, classes: int, rate: float) -> None:
        super().__init__(dim, classes)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return super().forward(F.dropout(x, self.rate, self.training))


def linear(dim: int, classes: int, *, dropout: float = 0.0) -> nn.Linear:
    """Return a linear classifier: (N, dim) -> (N, classes) logits.

    Args:
        dim: input features.
        classes: number of logits.
        dropout: probability of setting an input to 0 in train mode.
    """
    return DroppedLinear(dim, classes, dropout) if dropout else nn.Linear(dim, classes)


def outputs_of(head: nn.Module) -> int:
    """Return the number of classes of a classifier; 0 for a head that is none."""
    return head.out_features if isinstance(head, nn.Linear | AttentiveHead) else 0
