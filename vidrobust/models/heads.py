"""Heads: linear layers and projectors."""

from torch import nn


def projector(dim: int, hidden: int, out: int) -> nn.Sequential:
    """(N, dim) -> (N, out): the two-layer MLP of SimCLR and of CLAE, not normalised (METHODS
    section 2.2).

    hidden 0: one linear layer, which CLAE's Plain and UEL have.
    """
    if hidden == 0:
        return nn.Sequential(nn.Linear(dim, out))
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out))


def normed_mlp(
    dim: int, hidden: int, out: int, *, layers: int = 2, norm_out: str = ""
) -> nn.Sequential:
    """(N, dim) -> (N, out): linear layers with batch norm and ReLU between them.

    BYOL's projector and predictor have two, and so has every projector with `model.head_norm`;
    SimSiam's projector has three, and a norm without weights at its end. norm_out: such a norm
    ("plain"), or one with weights ("affine"), as ACL's; "": none.
    """
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        dim = hidden
    parts.append(nn.Linear(dim, out, bias=not norm_out))
    if norm_out:
        parts.append(nn.BatchNorm1d(out, affine=norm_out == "affine"))
    return nn.Sequential(*parts)


def linear(dim: int, classes: int) -> nn.Linear:
    """(N, dim) -> (N, classes) logits."""
    return nn.Linear(dim, classes)
