"""Read accuracies such as `linf-1/255=45`, and compare those of an evaluation with them."""

import math
from collections.abc import Collection, Mapping, Sequence

from vidrobust import config
from vidrobust.attacks import parse_threat
from vidrobust.evaluation.report.verdict import classifier_accuracy
from vidrobust.evaluation.retrieval_protocol import NAME as RETRIEVAL
from vidrobust.evaluation.summary import Summary
from vidrobust.utils.errors import UserError
from vidrobust.utils.text import shown

# Names of accuracies that are not those under a threat.
CLEAN = "clean"
MPC = "mpc"
_ROUNDING = 1e-9  # of 0.01 * per cent


def parse_percents(items: Sequence[str], option: str) -> dict[str, float]:
    """Return name -> fraction, of texts such as `linf-1/255=45`, `clean=80` or `mpc=30`.

    Names of threats are written as an evaluation writes them, such as linf-1/255 for
    linf-0.00392156862745098.

    Args:
        items: NAME=PERCENT each.
        option: where they come from, for messages.

    Raises:
        UserError: for an item that is no such text, and for one that is there twice.
    """
    fractions: dict[str, float] = {}
    for item in items:
        name, _, number = item.strip().rpartition("=")
        written = f"{option} {shown(item)}"
        try:
            key = name if name in (CLEAN, MPC) else str(parse_threat(name))
        except ValueError:
            raise UserError(
                f"{written}: write THREAT=PERCENT, such as linf-1/255=45, or {CLEAN}=PERCENT or"
                f" {MPC}=PERCENT"
            ) from None
        try:
            percent = float(number)
        except ValueError:
            percent = math.nan
        if not 0 <= percent <= 100:
            raise UserError(f"{written}: must be 0 to 100 per cent")
        if key in fractions:
            raise UserError(f"{written}: {key} is given twice; remove one")
        fractions[key] = percent / 100
    return fractions


def accuracies(summary: Summary) -> dict[str, float]:
    """Return name -> accuracy of an evaluation: clean, under each threat, and under corruptions."""
    clean = clean_accuracy(summary)
    found = {CLEAN: clean[0]} if clean else {}
    found |= {point.threat: point.robust_acc for point in summary.curve}
    if summary.corruption:
        found[MPC] = summary.corruption.mpc
    return found


def clean_accuracy(summary: Summary) -> tuple[float, int] | None:
    """Return the accuracy without an attack and the number of its videos, or None without any.

    It is on the unchanged clips of attacks or corruptions, and otherwise that of the representation
    over all views.
    """
    if summary.clean_acc is not None:
        return summary.clean_acc, summary.n
    return classifier_accuracy(summary) if summary.representation else None


def expected_names(cfg: config.Config) -> list[str]:
    """Return the names of the accuracies that an evaluation will have, as `accuracies` does."""
    attacks = cfg.protocol.name != RETRIEVAL
    names = [str(parse_threat(name)) for name in cfg.eval.threats] if attacks else []
    return [CLEAN, *names, *([MPC] if cfg.eval.corruption.names else [])]


def require_names(limits: Mapping[str, float], names: Collection[str], option: str) -> None:
    """Raise UserError for a limit of an accuracy that an evaluation does not have.

    Args:
        limits: name -> limit.
        names: of the accuracies of the evaluation.
        option: where the limits come from, for the message.
    """
    for key in limits:
        if key not in names:
            has = ", ".join(names) or "none"
            raise UserError(
                f"{option} {key}: this evaluation has no such accuracy; it has {has}; correct it,"
                f" or {'set eval.corruption.names' if key == MPC else 'add it to eval.threats'}"
            )


def below(values: Mapping[str, float], limits: Mapping[str, float]) -> list[str]:
    """Return a line for each accuracy that is below its limit.

    Args:
        values: name -> accuracy.
        limits: name -> smallest accuracy that passes.
    """
    return [
        f"{key}: {100 * values[key]:.2f} % is below {100 * limit:g} %"
        for key, limit in limits.items()
        if values[key] < limit - _ROUNDING
    ]
