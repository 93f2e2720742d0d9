"""Read which test videos an evaluation has measured, from its files of rows."""

import hashlib
from pathlib import Path

from vidrobust.evaluation.results import rank_files
from vidrobust.utils.atomic_files import read_rows

ALL = "predictions"  # stem of the file with all test videos; the others have the attacked ones
LISTS = (ALL, "results", "corruptions")


def videos_of(folder: Path, stem: str) -> list[tuple[str, int]]:
    """Return name and class of the videos that the rows of a file name, sorted, each once.

    Args:
        folder: of an evaluation.
        stem: of the file, one of LISTS. Rows of all ranks count.

    Returns:
        (name, class); -1 for videos with several labels. Empty without rows.
    """
    rows = [row for path in rank_files(folder, stem) for row in read_rows(path)]
    return sorted({(row["uid"], row.get("label", -1)) for row in rows if "uid" in row})


def sha_of_test_videos(folder: Path) -> str:
    """Return the first 16 hex digits of a SHA-256 of all test videos, in any order; "": unknown."""
    videos = videos_of(folder, ALL)
    text = "".join(f"{uid} {label}\n" for uid, label in videos)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return digest[:16] if videos else ""
