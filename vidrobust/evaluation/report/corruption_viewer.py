"""Accuracy by corruption and severity as a table whose cells show a video under it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vidrobust.evaluation.natural.corrupted_pictures import shown_video
from vidrobust.evaluation.natural.corruption_summary import CorruptionTable
from vidrobust.evaluation.report.clip_player import class_name
from vidrobust.evaluation.report.page import data_uri
from vidrobust.evaluation.results import rank_files
from vidrobust.evaluation.summary import Summary
from vidrobust.utils.atomic_files import read_rows


@dataclass(frozen=True)
class CorruptionViewer:
    """The table, and the pictures of one video.

    Attributes:
        table: accuracies.
        uid: name of the video that the pictures show; "" without pictures.
        true: name of its class.
        pictures: "NAME-SEVERITY" -> (address of the picture, name of the predicted class).
        left_out: number of pictures for which there was no room.
    """

    table: CorruptionTable
    uid: str
    true: str
    pictures: dict[str, tuple[str, str]]
    left_out: int


def corruption_viewer(
    out: Path, summary: Summary, classes: Sequence[str], most: int
) -> CorruptionViewer | None:
    """Return the table of corruptions with pictures; None without corruptions.

    Args:
        out: folder of the evaluation.
        summary: what it measured.
        classes: names of the classes.
        most: bytes of all pictures.
    """
    table = summary.corruption
    if table is None:
        return None
    folder = out / "corrupted"
    rows = [row for path in rank_files(out, "corruptions") for row in read_rows(path)]
    index = shown_video(folder)
    shown = [row for row in rows if row["index"] == index]
    # where room is short, the clean clip and the strongest severity matter most
    wanted = sorted(
        (
            (row["name"], severity, answer)
            for row in shown
            for severity, answer in zip(row["severities"], row["predicted"], strict=True)
        ),
        key=lambda each: (each[1] not in (0, 5), each[1]),
    )
    pictures = {}
    left, left_out = most, 0
    for name, severity, answer in wanted:
        path = folder / f"{name}-{severity}.webp"
        if not path.is_file():
            continue
        address = data_uri(path.read_bytes(), "webp")
        if len(address) > left:
            left_out += 1
            continue
        left -= len(address)
        predicted = "no prediction" if answer is None else class_name(classes, answer)
        pictures[f"{name}-{severity}"] = (address, predicted)
    first = shown[0] if pictures else None
    return CorruptionViewer(
        table,
        first["uid"] if first else "",
        class_name(classes, first["label"]) if first else "",
        pictures,
        left_out,
    )
