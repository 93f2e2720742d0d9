"""Say in one sentence what an evaluation found."""

from vidrobust.evaluation.adversarial.curve import CurvePoint
from vidrobust.evaluation.summary import Summary, classifier_key
from vidrobust.utils.readable import percent

# Support of a threat -> who may change, as the subject of "... may move by".
_SUBJECTS = {
    "dense": "every pixel",
    "tube": "every pixel, alike in all frames,",
    "flicker": "the colour of every frame",
    "frames": "every pixel of {k} frames",
    "patch": "a square of {k} x {k} pixels",
    "border": "a border of {k} pixels",
    "pixels": "{k} pixels of every frame",
}
# The same for k = 1.
_SINGLE = {
    "frames": "every pixel of 1 frame",
    "patch": "a square of 1 pixel",
    "border": "a border of 1 pixel",
    "pixels": "1 pixel of every frame",
}


def verdict(summary: Summary, kind: str = "videos") -> str:
    """Return the sentence that an evaluation's reader needs first.

    Args:
        summary: what was measured.
        kind: of what, "videos" or "images".
    """
    if summary.average_precision:
        mean = next(iter(summary.average_precision.values())).mean
        return f"On {summary.n} {kind} the mean average precision is {percent(mean, 0)}."
    if summary.retrieval:
        return _of_retrieval(summary, kind)
    if summary.transfer and not summary.curve:
        return _of_transfer(summary)
    if summary.clean_acc is None:
        best = classifier_accuracy(summary)
        return f"Of {best[1]} {kind}, {percent(best[0], 0)} are classified rightly."
    sentence = f"Of {summary.n} {kind}, {percent(summary.clean_acc, 0)} are classified rightly"
    endings = []
    if point := worst(summary.curve):
        endings.append(f"{percent(point.robust_acc, 0)} still are when {in_words(point)}")
    if summary.corruption:
        table = summary.corruption
        endings.append(
            f"{percent(table.mpc, 0)} on average under {len(table.corruptions)} corruptions"
        )
    return "; ".join([sentence, *endings]) + "."


def worst(curve: list[CurvePoint]) -> CurvePoint | None:
    """Return the threat to name: of the first kind, the smallest that breaks half, or the largest.

    Of a curve that falls to 0 at once, the first budget says most; of one that stays high, the
    last.
    """
    attacked = [point for point in curve if point.eps > 0]
    if not attacked:
        return None
    family = [point for point in attacked if point.kind == attacked[0].kind]
    right = 1 - (family[0].killed_by.get("clean", 0) + family[0].killed_by.get("error", 0)) / (
        family[0].n
    )
    halved = [point for point in family if point.robust_acc <= right / 2]
    return halved[0] if halved else family[-1]


def in_words(point: CurvePoint) -> str:
    """Return a threat in words, after "when"."""
    subject = _SUBJECTS[point.support].format(k=point.k)
    if point.k == 1:
        subject = _SINGLE[point.support]
    if point.norm == "linf":
        if point.support == "patch" and point.eps == 1:
            return f"{subject} may be painted over"
        if point.eps == 1:
            return f"{subject} may move by any amount"
        return f"{subject} may move by {255 * point.eps:.3g}/255"
    if point.norm == "l2":
        return f"{subject} may move, in all by {point.eps:.3g} (L2)"
    if point.norm == "l2_frame":
        return f"{subject} may move, in each frame by {point.eps:.3g} (L2)"
    return f"{subject} may move, in all by {point.eps:.3g} (L1)"


def classifier_accuracy(summary: Summary) -> tuple[float, int]:
    """Return the accuracy of what is measured, and the number of its videos."""
    key = classifier_key(summary.classifier)
    accuracy = summary.representation.get(key) or next(iter(summary.representation.values()))
    return accuracy.acc, accuracy.n


def _of_transfer(summary: Summary) -> str:
    """Return the sentence of an evaluation on adversarial clips of others: the last of them."""
    last = summary.transfer[-1]
    return (
        f"Of {last.n} adversarial clips of {last.checkpoint or last.source} under {last.threat},"
        f" {percent(last.acc, 0)} are classified rightly."
    )


def _of_retrieval(summary: Summary, kind: str) -> str:
    """Return the sentence of the protocol "retrieval": recall at the smallest k."""
    table = summary.retrieval
    assert table is not None
    clean = table.recall["trained"][table.similarity][0]
    sentence = (
        f"For {percent(clean.recall, 0)} of {table.n} {kind} one of the {clean.k} nearest training"
        f" {kind} is of the same class"
        if clean.k > 1
        else f"For {percent(clean.recall, 0)} of {table.n} {kind} the nearest training"
        f" {kind.removesuffix('s')} is of the same class"
    )
    attacked = [point for point in table.curve if point.eps > 0]
    if not attacked:
        return f"{sentence}."
    last = attacked[-1]
    kept = percent(last.recall[0].recall, 0)
    return f"{sentence}; for {kept} when {last.side} move by {last.threat}."
