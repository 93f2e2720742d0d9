"""Learning rates that decay from the head to the input of a backbone, stage by stage."""

from torch import nn

from vidrobust.models import Backbone
from vidrobust.models.stages import stage_names


def rate_factors(backbone: Backbone, decay: float) -> dict[nn.Parameter, float]:
    """Return the factor of each backbone parameter's learning rate.

    As in the code of BEiT and VideoMAE, layer i of L stages has the factor decay^(L + 1 - i).
    Layer 0 is what comes before the stages: stem, patch and position embeddings. Layer i is the
    i-th stage. What comes after the stages, such as a final norm, has the factor 1, and so have
    heads, which are no part of the backbone.

    Args:
        backbone: its stages are those of `stage_names`.
        decay: factor from one stage to the one before it, 0 to 1.

    Raises:
        UserError: for a network without stages.
    """
    stages = stage_names(backbone)
    factors: dict[nn.Parameter, float] = dict.fromkeys(backbone.parameters(), 1.0)
    layer = 0  # of parameters before the first stage, in the order in which they are registered
    for name, p in backbone.stored.named_parameters():
        numbers = [i for i, stage in enumerate(stages, 1) if name.startswith(f"{stage}.")]
        if numbers:
            layer = numbers[0]
        elif layer:
            layer = len(stages) + 1
        factors[p] = decay ** (len(stages) + 1 - layer)
    return factors
