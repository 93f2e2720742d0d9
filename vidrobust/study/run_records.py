"""Carry what the runs of a study have measured to another machine, in one file without weights.

A line of the file is a JSON object: an evaluation of a run, with its options and what it did on
each test video, or the names of test videos, which evaluations share.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from vidrobust import config
from vidrobust.config.yaml_text import dump_yaml, parse_yaml
from vidrobust.study.outcome_columns import packed
from vidrobust.study.outcomes import OUTCOMES, columns_of, read_column
from vidrobust.study.run import FREE
from vidrobust.study.tuned_runs import TUNED_RUNS
from vidrobust.study.tuning import TUNING, read_choices
from vidrobust.study.until import CHECKS, UNTIL
from vidrobust.utils.atomic_files import read_rows, replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import read_metrics

# stands for the folder of the study in options, such as the run that another starts from
_OUT = "{study}"
# options that name a place of this machine, and change no result
_PLACES = ("data.root", "data.twins", "eval.shift.root", "protocol.splits")


def write_records(path: Path, out: Path) -> None:
    """Add the evaluations of a study's folder to a file of records.

    Runs that choose options of an arm are in it until tuning.json has what they decided.

    Args:
        path: the file.
        out: folder of the study.

    Raises:
        OSError: if the file cannot be written.
    """
    rows = read_rows(path) if path.is_file() else []
    tuned = out / TUNING
    choices = read_choices(out) or {}

    def decided(place: str) -> bool:  # a run whose accuracy tuning.json has, or that file itself
        parts = place.split("/")
        return place == TUNING or (_chooses(place) and parts[2] in choices.get(parts[1], {}))

    if tuned.is_file():
        rows = [row for row in rows if not decided(row.get("run", ""))]
        rows.append({"run": TUNING, "files": {TUNING: tuned.read_text()}})
    known = {(row.get("run"), row.get("evaluation")): row for row in rows}
    videos = {row["videos"]: row for row in rows if "videos" in row}
    for summary in sorted(out.glob("**/eval/*/summary.json")):
        run, evaluation = summary.parents[2], summary.parent.name
        place = run.relative_to(out).as_posix()
        # until.json has what such a check has found, and tuning.json what was chosen
        if evaluation.startswith(UNTIL) or decided(place):
            continue
        old = known.get((place, evaluation))
        # an evaluation that has been repeated has another summary
        if old is None or old["files"].get(f"eval/{evaluation}/summary.json") != _text(summary):
            known[place, evaluation] = _row(run, out, evaluation, videos)
    kept = [row for row in known.values() if "run" in row]
    with replacing(path) as file:
        for row in (*videos.values(), *kept):
            file.write((json.dumps(row) + "\n").encode())


def read_records(path: Path, out: Path) -> None:
    """Put the evaluations of a file of records into a study's folder, where they are not yet.

    Args:
        path: the file.
        out: folder of the study.

    Raises:
        UserError: for a file of something else, and for a run in the folder with other options.
    """
    rows = read_rows(path)
    videos = {row["videos"]: row["uids"] for row in rows if "videos" in row}
    for row in rows:
        if "run" not in row:
            continue
        try:
            folder = _folder_of(row, out)
            _require_same_options(row, folder, out, path)
            _unpack(row, folder, out, videos)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{path}: holds no records of a study ({error!r})") from None


def _row(run: Path, out: Path, evaluation: str, videos: dict[str, Any]) -> dict[str, Any]:
    """Return an evaluation as a row.

    Args:
        run: folder of the run.
        out: folder of the study.
        evaluation: its name.
        videos: name -> row of the names of videos; gets those of this evaluation.
    """
    place = run.relative_to(out).as_posix()
    folder = run / "eval" / evaluation
    files = {"config.yaml": _options_text(run, out)}
    files[f"eval/{evaluation}/summary.json"] = _text(folder / "summary.json")
    removal = [row for row in read_metrics(run) if row.get("split") == "train_epoch"]
    files["metrics.jsonl"] = "".join(json.dumps(row) + "\n" for row in removal)
    if (run / CHECKS).is_file():
        files[CHECKS] = (run / CHECKS).read_text()
    columns = {}
    # runs that choose options are compared by their summary alone
    for name in () if _chooses(place) else columns_of(folder):
        sha, uids, columns[name] = packed(read_column(folder, name))
        videos.setdefault(sha, {"videos": sha, "uids": uids})
    return {"run": place, "evaluation": evaluation, "files": files, "columns": columns}


def _options_text(run: Path, out: Path) -> str:
    """Return config.yaml of a run without places of this machine."""
    cfg = config.load(run / "config.yaml")
    values = parse_yaml(config.to_yaml(cfg))
    for key, _ in config.options():
        value = config.get(cfg, key)
        *sections, name = key.split(".")
        section = values
        for each in sections:
            section = section[each]
        if key in _PLACES:
            section.pop(name)
        elif isinstance(value, str) and value.startswith(f"{out}/"):
            section[name] = _OUT + value.removeprefix(str(out))
    return dump_yaml(values)


def _text(summary: Path) -> str:
    """Return a summary without line breaks and blanks, which are a third of it."""
    return json.dumps(json.loads(summary.read_text()))


def _chooses(place: str) -> bool:
    """Return whether a place in a study's folder is of the runs that choose options."""
    return place.split("/")[0] == TUNED_RUNS


def _folder_of(row: dict[str, Any], out: Path) -> Path:
    """Return the folder of a row's run.

    Raises:
        ValueError: for one that is not inside of the study's.
    """
    place = PurePosixPath("" if row["run"] == TUNING else row["run"])
    names = [PurePosixPath(name) for name in row["files"]]
    if any(each.is_absolute() or ".." in each.parts for each in (place, *names)):
        raise ValueError(f"{place} is outside of the study's folder")
    return out / place


def _require_same_options(row: dict[str, Any], folder: Path, out: Path, path: Path) -> None:
    """Raise UserError where a folder holds a run with other options than a row."""
    existing = folder / "config.yaml"
    if not existing.is_file() or "config.yaml" not in row["files"]:
        return
    recorded = config.loads(row["files"]["config.yaml"].replace(_OUT, str(out)), source=str(path))
    free = (*FREE, "eval.")
    lines = config.differences(recorded, config.load(existing))
    if changed := [line for line in lines if not line.startswith(free)]:
        raise UserError(
            f"{folder} holds a run with other options than {path} (its values in brackets):"
            f" {', '.join(changed)}; set --output-dir or another --records"
        )


def _unpack(row: dict[str, Any], folder: Path, out: Path, videos: dict[str, list[str]]) -> None:
    """Write the files of a row that are missing.

    Args:
        row: the row.
        folder: of its run.
        out: of the study.
        videos: name -> uids.
    """
    files = dict(row["files"])
    if columns := row.get("columns"):
        used = {column["videos"]: videos[column["videos"]] for column in columns.values()}
        content = {"videos": used, "columns": columns}
        files[f"eval/{row['evaluation']}/{OUTCOMES}"] = json.dumps(content)
    # of an evaluation that was made here, the rows count
    if (folder / f"eval/{row.get('evaluation')}/summary.json").is_file():
        return
    for name, text in sorted(files.items(), key=_summary_last):
        if not (folder / name).is_file():
            with replacing(folder / name) as file:
                file.write(text.replace(_OUT, str(out)).encode())


def _summary_last(item: tuple[str, str]) -> tuple[bool, str]:
    """Sort files so that a run counts as finished when all of them are there."""
    return item[0].endswith("summary.json"), item[0]
