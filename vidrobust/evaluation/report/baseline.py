"""Read another evaluation of the same videos, which report.html shows in grey."""

from dataclasses import dataclass
from pathlib import Path

from vidrobust import config
from vidrobust.evaluation.loading import build_lists
from vidrobust.evaluation.summary import Summary, read_summary
from vidrobust.models.inference import evenly
from vidrobust.utils.atomic_files import read_rows
from vidrobust.utils.errors import UserError

_FLAG = "--baseline"


@dataclass(frozen=True)
class Baseline:
    """Another evaluation.

    Attributes:
        name: of its folder, the last parts of the path.
        summary: what it measured, on the same videos.
        differences: settings of the measurement that differ, such as "attack pgd-20x1".
    """

    name: str
    summary: Summary
    differences: list[str]


def require_baseline(folder: Path, name: str) -> Path:
    """Return the folder of another evaluation.

    Args:
        folder: of the evaluation, or of its run, whose evaluation of the same name is taken.
        name: of the evaluation.

    Raises:
        UserError: for a folder without it.
    """
    places = [folder, folder / "eval" / name]
    found = next((place for place in places if (place / "summary.json").is_file()), None)
    if found is None:
        raise UserError(
            f"{_FLAG} {folder}: holds no finished evaluation, and no eval/{name} with one; name"
            " the folder with its summary.json"
        )
    return found


def check_baseline(folder: Path, cfg: config.Config) -> None:
    """Refuse an evaluation of other videos than a configuration names, before hours of attack.

    Args:
        folder: as for `require_baseline`.
        cfg: the configuration.

    Raises:
        UserError: as `require_baseline`, and for other test videos, eval.limit or eval.unit.
    """
    found = require_baseline(folder, cfg.eval.name)
    _, test, _ = build_lists(cfg.data, needs_train=False)
    videos = sorted((record.uid, record.label) for record in test)
    n = len(evenly(len(test), cfg.eval.limit))
    _require_same(found, videos, n, cfg.eval.unit)


def read_baseline(folder: Path, out: Path, summary: Summary) -> Baseline:
    """Read another evaluation of the same videos.

    Args:
        folder: as for `require_baseline`.
        out: folder of the evaluation that it is compared with.
        summary: what that evaluation measured.

    Raises:
        UserError: as `check_baseline`.
    """
    found = require_baseline(folder, out.name)
    _require_same(found, _videos(out), summary.n, summary.unit)
    other = read_summary(found / "summary.json")
    settings = {
        "attack": (summary.suite, other.suite),
        "classifier": (summary.classifier, other.classifier),
        "norm branch": (summary.branch, other.branch),
        "views": (summary.views, other.views),
        "passes per prediction": (summary.eot, other.eot),
    }
    differences = [
        f"{name} {theirs}" for name, (ours, theirs) in settings.items() if ours != theirs
    ]
    return Baseline("/".join(found.resolve().parts[-3:]), other, differences)


def _require_same(found: Path, videos: list[tuple[str, int]], n: int, unit: str) -> None:
    """Raise UserError for an evaluation of other test videos.

    Args:
        found: folder of the evaluation.
        videos: name and class of the test videos, sorted.
        n: number of attacked videos.
        unit: what is attacked, a clip or the video.
    """
    other = read_summary(found / "summary.json")
    differ = {
        "test videos": _videos(found) != videos,
        f"eval.limit ({other.n} videos, here {n})": other.n != n,
        f"eval.unit ({other.unit}, here {unit})": other.unit != unit,
    }
    if any(differ.values()):
        names = ", ".join(name for name, value in differ.items() if value)
        raise UserError(
            f"{_FLAG} {found}: was measured on other videos: {names}; evaluate it with the same"
            " data and options"
        )


def _videos(folder: Path) -> list[tuple[str, int]]:
    """Return name and class of the test videos of an evaluation, sorted."""
    path = folder / "predictions.jsonl"
    rows = read_rows(path) if path.is_file() else []
    return sorted((row["uid"], row.get("label", -1)) for row in rows)
