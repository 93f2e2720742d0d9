"""Take a model's own classifier for the classes of a data set, matched by name."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from vidrobust.evaluation.measured_model import MeasuredModel
from vidrobust.evaluation.natural.class_tables import KINETICS
from vidrobust.models import AttentiveHead
from vidrobust.utils.logging import log
from vidrobust.utils.text import places_of

Head = nn.Linear | AttentiveHead


def own_head(measured: MeasuredModel, classes: Sequence[str]) -> tuple[Head | None, list[str]]:
    """Return the model's own classifier, with a logit per class of the data set in its order.

    Args:
        measured: the model.
        classes: names of the data set's classes.

    Returns:
        (the classifier, or None without one and for one of other classes, which is logged; a
        warning of an order that is assumed, or none). An attentive head takes tokens; all others
        take features.
    """
    head = measured.model.head
    if not isinstance(head, nn.Linear | AttentiveHead):
        return None, []
    doubts = []
    if measured.classes == ():
        log.info("the model's classifier is not used: it is of another data set, which is missing")
        return None, []
    names = measured.input.classes if measured.input else measured.classes
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


def _reordered(head: Head, rows: list[int]) -> Head:
    """Return a classifier with other rows, or the same in another order."""
    last = head.linear if isinstance(head, AttentiveHead) else head
    layer = nn.Linear(last.in_features, len(rows), bias=last.bias is not None)
    with torch.no_grad():
        layer.weight.copy_(last.weight[rows])
        if last.bias is not None:
            layer.bias.copy_(last.bias[rows])
    layer = layer.to(last.weight.device)
    if not isinstance(head, AttentiveHead):
        return layer
    changed = copy.deepcopy(head)
    changed.linear = layer
    return changed.eval().requires_grad_(False)
