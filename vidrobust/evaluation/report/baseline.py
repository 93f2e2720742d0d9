"""Read another evaluation of the same videos, which report.html shows in grey."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vidrobust import config
from vidrobust.evaluation.loading import build_lists
from vidrobust.evaluation.report.card import input_of, options_of
from vidrobust.evaluation.report.measured_videos import ALL, LISTS, videos_of
from vidrobust.evaluation.summary import Summary, read_summary, split_of
from vidrobust.models.inference import evenly
from vidrobust.utils.atomic_files import read_json, replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log
from vidrobust.utils.text import shown

_FLAG = "--baseline"
_FILE = "baseline.json"  # in the folder of an evaluation: where its baseline is
# entries of `input_of` that say how clips are made of a video
_CLIP = ("frames", "stride", "fps", "short_side", "resize", "size", "interpolation")


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
        UserError: as `require_baseline`, and for another data set or split, other test videos,
            eval.limit or eval.unit, and for a folder without a list of its videos.
    """
    found = require_baseline(folder, cfg.eval.name)
    _, test, _ = build_lists(cfg.data, needs_train=False)
    videos = [(record.uid, record.label) for record in test]
    limited = [videos[index] for index in evenly(len(test), cfg.eval.limit)]
    lists = {stem: sorted(set(limited)) for stem in LISTS} | {ALL: sorted(set(videos))}
    data = (cfg.data.name, split_of(cfg.data), len(limited), cfg.eval.unit)
    _require_same(found, data, lists)


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
    if found.resolve() == out.resolve():
        raise UserError(f"{_FLAG} {folder}: is this evaluation itself; name another one")
    _require_same(found, _data(summary), _videos(out))
    other = read_summary(found / "summary.json")
    name = "/".join(found.resolve().parts[-3:])
    return Baseline(name, other, _differences(out, summary, found, other))


def remember_baseline(folder: Path, out: Path) -> None:
    """Write where the baseline of an evaluation is, relative to it.

    Args:
        folder: as for `require_baseline`.
        out: folder of the evaluation.
    """
    place = os.path.relpath(require_baseline(folder, out.name).resolve(), out.resolve())
    with replacing(out / _FILE) as file:
        file.write((json.dumps({"folder": place}) + "\n").encode("utf-8", "surrogateescape"))


def remembered_baseline(out: Path, summary: Summary) -> Baseline | None:
    """Return the baseline that an evaluation was compared with before, or None.

    One that has gone, or that does not fit any more, is left out with a warning.

    Args:
        out: folder of the evaluation.
        summary: what it measured.
    """
    path = out / _FILE
    if not path.is_file():
        return None
    try:
        place = read_json(path, f"delete it, or name the baseline by {_FLAG}").get("folder", "")
        return read_baseline(out / str(place), out, summary)
    except UserError as error:
        log.warning(f"report.html is without its baseline: {error}")
        return None


def baseline_sentence(summary: Summary, baseline: Baseline) -> str:
    """Return what a page says of its baseline: how it was measured, or why it is not drawn.

    Args:
        summary: of the evaluation.
        baseline: which it is compared with.
    """
    ours, theirs = (
        {point.kind for point in each.curve if point.eps > 0}
        for each in (summary, baseline.summary)
    )
    if not ours:
        return f"Without attacks there is nothing to compare the baseline {baseline.name} with."
    if not theirs:
        return f"The baseline {baseline.name} has no attacks."
    if not ours & theirs:
        return f"The baseline {baseline.name} has no kind of threat in common."
    sentence = f"In grey: {baseline.name}, on the same videos"
    if baseline.differences:
        sentence += f", measured otherwise: {', '.join(baseline.differences)}"
    return f"{sentence}."


# --- The same data ---


def _data(summary: Summary) -> tuple[str, str, int, str]:
    """Return data set, split, number of attacked videos, and what is attacked."""
    return summary.dataset, summary.split, summary.n, summary.unit


def _require_same(
    found: Path, data: tuple[str, str, int, str], lists: Mapping[str, list[tuple[str, int]]]
) -> None:
    """Raise UserError for an evaluation of other data, or where videos cannot be compared.

    Args:
        found: folder of the evaluation.
        data: what `_data` returns for this evaluation.
        lists: what `_videos` returns for it.
    """
    options = ("data.name", "split", "eval.limit", "eval.unit")
    theirs = _data(read_summary(found / "summary.json"))
    differ = [
        f"{option} ({shown(their)}, here {shown(our)})"
        for option, their, our in zip(options, theirs, data, strict=True)
        if their != our
    ]
    videos = _videos(found)
    shared = [stem for stem in LISTS if stem in videos and stem in lists]
    if shared and videos[shared[0]] != lists[shared[0]]:
        differ.insert(0, "test videos")
    if differ:
        raise UserError(
            f"{_FLAG} {found}: was measured on other data: {', '.join(differ)}; evaluate it with"
            " the same data and options"
        )
    if not shared:
        raise UserError(
            f"{_FLAG} {found}: no list of test videos can be compared: the two evaluations need"
            f" one of {', '.join(f'{stem}.jsonl' for stem in LISTS)}, the same one; evaluate the"
            " one without it again"
        )


def _videos(folder: Path) -> dict[str, list[tuple[str, int]]]:
    """Return the test videos of an evaluation by the stem of the file that lists them.

    Files without rows are left out.
    """
    lists = {stem: videos_of(folder, stem) for stem in LISTS}
    return {stem: videos for stem, videos in lists.items() if videos}


# --- What was measured otherwise ---


def _differences(out: Path, summary: Summary, found: Path, other: Summary) -> list[str]:
    """Return the settings of a baseline that differ, such as "attack pgd-20x1".

    Args:
        out: folder of the evaluation.
        summary: what it measured.
        found: folder of the baseline.
        other: what that measured.
    """
    theirs = _settings(other)
    differences = [
        f"{name} {theirs[name]}"
        for name, value in _settings(summary).items()
        if theirs[name] != value
    ]
    our_clip = input_of(summary, options_of(out))
    their_clip = input_of(other, options_of(found))
    if bool(our_clip) != bool(their_clip):
        whose = " of this evaluation" if their_clip else ""
        return [*differences, f"frames, stride and size{whose} unknown"]
    for key in _CLIP:
        ours, value = our_clip.get(key), their_clip.get(key)
        if ours != value:
            text = " x ".join(map(str, value)) if isinstance(value, list) else value
            name = key.replace("_", " ")
            differences.append(f"no {name}" if value is None else f"{name} {text}")
    return differences


def _settings(summary: Summary) -> dict[str, object]:
    """Return the settings of a measurement, in words."""
    return {
        "attack": summary.suite or "none",
        "classifier": summary.classifier,
        "protocol": summary.protocol,
        "labels": summary.labels or "all",
        "norm branch": summary.branch,
        "attacked views": summary.views.get("attack", "1x1"),
        "views": summary.views.get("representation", "1x1"),
        "average of": summary.view_average,
        "passes per prediction": summary.eot,
    }
