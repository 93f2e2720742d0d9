"""Take a model's own classifier for the classes of a data set, matched by name."""

from collections.abc import Sequence

import torch
from torch import nn

from vidrobust.evaluation.measured_model import MeasuredModel
from vidrobust.evaluation.natural.class_tables import KINETICS
from vidrobust.utils.logging import log
from vidrobust.utils.text import places_of


def own_head(measured: MeasuredModel, classes: Sequence[str]) -> tuple[nn.Linear | None, list[str]]:
    """Return the model's own classifier, with a logit per class of the data set in its order.

    Args:
        measured: the model.
        classes: names of the data set's classes.

    Returns:
        (the classifier, or None without a linear head and for one of other classes, which is
        logged; a warning of an order that is assumed, or none).
    """
    head = measured.model.head
    if not isinstance(head, nn.Linear):
        return None, []
    doubts = []
    names = measured.input.classes if measured.input else None
    all_kinetics = len(classes) == len(KINETICS) and None not in places_of(KINETICS, classes)
    if measured.input and names is None and head.out_features == len(KINETICS) and all_kinetics:
        # Lists of Kinetics may have another order, files of weights hardly ever.
        names = KINETICS
        doubts.append(
            "the model's 400 classes have no names: they are taken to be those of Kinetics-400 in"
            " alphabetical order; model.input.classes=FILE names them"
        )
    if names is not None and len(names) == head.out_features:
        places = places_of(names, classes)
        rows = [place for place in places if place is not None]
        if len(rows) == len(classes) == len(names):
            return _reordered(head, rows), doubts
        log.info(
            f"the model's classifier of {len(names)} classes is not used: {len(rows)} of the data"
            f" set's {len(classes)} are among them"
        )
        return None, []
    if head.out_features != len(classes):
        if measured.input is not None:
            log.info(
                f"the model's classifier of {head.out_features} classes is not used: the data set"
                f" has {len(classes)}"
            )
        return None, []
    if measured.input is not None:
        doubts.append(
            f"the model's {len(classes)} classes have no names: they are taken to be in the order"
            f" {', '.join(classes[:3])}, ..."
        )
    return head, doubts


def _reordered(head: nn.Linear, rows: list[int]) -> nn.Linear:
    """Return a linear layer with other rows, or the same in another order."""
    layer = nn.Linear(head.in_features, len(rows), bias=head.bias is not None)
    with torch.no_grad():
        layer.weight.copy_(head.weight[rows])
        if head.bias is not None:
            layer.bias.copy_(head.bias[rows])
    return layer.to(head.weight.device)
