"""Carry what the runs of a study have measured to another machine, in one file without weights.

A line of the file is a JSON object: an evaluation of a run, with its options and what it did on
each test video, or the names of test videos, which evaluations share.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from vidrobust import config
from vidrobust.config.yaml_text import dump_yaml, parse_yaml
from vidrobust.evaluation.results import IDENTITY, differing
from vidrobust.study.outcome_columns import packed, unpacked
from vidrobust.study.outcomes import OUTCOMES, columns_of, read_column
from vidrobust.study.run import FREE
from vidrobust.study.tuning import TUNED_RUNS, TUNING, read_tuning_file
from vidrobust.study.until import CHECKS, UNTIL
from vidrobust.utils.atomic_files import read_json, replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import read_metrics

# stands for the folder of the study in options, such as the run that another starts from
_OUT = "{study}"
# options that name a place of this machine
_PLACES = (
    "data.root",
    "data.twins",
    "data.archive",
    "eval.shift.root",
    "eval.open_set.root",
    "protocol.splits",
)

Row = dict[str, Any]


def write_records(path: Path, out: Path) -> None:
    """Add the evaluations of a study's folder to a file of records.

    Runs that choose options of an arm are in it until tuning.json has what they decided. Paths of
    a manifest, and of weights outside of the study's folder, stay in it.

    Args:
        path: the file.
        out: folder of the study.

    Raises:
        UserError: for a file of something else.
        OSError: if the file cannot be written.
    """
    rows = _rows(path) if path.is_file() else []
    videos = {row["videos"]: row for row in rows if "videos" in row}
    by_name = {_name(row): row for row in rows if "run" in row}
    choices = _merged(_choices(by_name.get((TUNING, ""))), read_tuning_file(out))
    if choices:
        by_name[TUNING, ""] = {"run": TUNING, "files": {TUNING: json.dumps(choices)}}
    for summary in sorted(out.glob("**/eval/*/summary.json")):
        run, evaluation = summary.parents[2], summary.parent.name
        name = run.relative_to(out).as_posix(), evaluation
        # until.json has what checks on held-out videos have found; what came from records stays
        is_check = evaluation.startswith(UNTIL)
        is_run = (run / "config.yaml").is_file()  # not another evaluation in this folder
        if is_check or not is_run or (summary.parent / OUTCOMES).is_file():
            continue
        old = by_name.get(name, {"files": {}})["files"]
        # an evaluation that has been repeated has another summary
        if old.get(_summary_name(evaluation)) != _text(summary, run) or (
            _has_other_options(run, evaluation) and _identity_name(evaluation) not in old
        ):
            by_name[name] = _row(run, out, evaluation, videos)
    kept = [row for name, row in by_name.items() if not _is_decided(name[0], choices)]
    with replacing(path) as file:
        for row in (*videos.values(), *kept):
            file.write((json.dumps(row) + "\n").encode())


def read_records(path: Path, out: Path) -> None:
    """Put the evaluations of a file of records into a study's folder.

    Runs that have begun in this folder are left alone.

    Args:
        path: the file.
        out: folder of the study.

    Raises:
        UserError: for a file of something else, and for a run in the folder with other options.
    """
    rows = _rows(path)
    videos = {row["videos"]: row["uids"] for row in rows if "videos" in row}
    for row in rows:
        if "run" not in row:
            continue
        try:
            if row["run"] == TUNING:
                _unpack_choices(row, out)
            else:
                _require_same_options(row, out, path)
                _unpack(row, out, videos)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise _damaged(path, repr(error)) from None


# --- Rows ---


def _rows(path: Path) -> list[Row]:
    """Return the rows of a file of records.

    Raises:
        UserError: for a line of anything else, which the next writing would delete.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, content = ("videos", "uids") if "videos" in row else ("run", "files")
            is_row = isinstance(row[name], str) and isinstance(row[content], list | dict)
        except (ValueError, RecursionError, KeyError, TypeError):
            is_row = False
        if not is_row:
            raise _damaged(path, f"line {number}")
        rows.append(row)
    return rows


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: holds no records of a study ({what}); name another file")


def _name(row: Row) -> tuple[str, str]:
    """Return the run and the evaluation of a row."""
    return row["run"], row.get("evaluation", "")


def _row(run: Path, out: Path, evaluation: str, videos: dict[str, Row]) -> Row:
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
    files[_summary_name(evaluation)] = _text(folder / "summary.json", run)
    if _has_other_options(run, evaluation):
        files[_identity_name(evaluation)] = _identity_text(folder / IDENTITY, out)
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


def _summary_name(evaluation: str) -> str:
    return f"eval/{evaluation}/summary.json"


def _identity_name(evaluation: str) -> str:
    return f"eval/{evaluation}/{IDENTITY}"


def _has_other_options(run: Path, evaluation: str) -> bool:
    """Return whether an evaluation has options of its own; config.yaml has those of the run's."""
    has_identity = (run / _identity_name(evaluation)).is_file()
    return has_identity and evaluation != config.load(run / "config.yaml").eval.name


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


def _identity_text(path: Path, out: Path) -> str:
    """Return the options of an evaluation, with paths in the study's folder relative to it."""
    options = read_json(path, f"delete {path.parent}").get("options", {})
    here = f"{out}/"
    return json.dumps(
        {"options": {key: value.replace(here, f"{_OUT}/") for key, value in options.items()}}
    )


def _text(summary: Path, run: Path) -> str:
    """Return a summary without line breaks, and with names of files relative to the data."""
    text = json.dumps(json.loads(summary.read_text()))
    cfg = config.load(run / "config.yaml")
    for key in _PLACES:
        root = config.get(cfg, key)
        if isinstance(root, str) and root:
            text = text.replace(json.dumps(root.rstrip("/") + "/")[1:-1], "")
    return text


# --- Choices ---


def _chooses(place: str) -> bool:
    """Return whether a place in a study's folder is of the runs that choose options."""
    return place.split("/")[0] == TUNED_RUNS


def _is_decided(place: str, choices: Row) -> bool:
    """Return whether tuning.json has the accuracy of a run."""
    parts = place.split("/")
    return _chooses(place) and len(parts) > 2 and parts[2] in choices.get(parts[1], {})


def _choices(row: Row | None) -> Row:
    """Return the content of tuning.json in its row; nothing without a row."""
    return {} if row is None else dict(json.loads(row["files"][TUNING]))


def _merged(below: Row, above: Row) -> Row:
    """Return the choices of both, those of `above` where an arm is in both."""
    return below | {name: below.get(name, {}) | arms for name, arms in above.items()}


def _unpack_choices(row: Row, out: Path) -> None:
    """Add the choices of a row to tuning.json, where an arm has none yet."""
    here = read_tuning_file(out)
    choices = _merged(_choices(row), here)
    if choices != here:
        with replacing(out / TUNING) as file:
            file.write((json.dumps(choices, indent=2) + "\n").encode())


# --- Runs ---


def _folder_of(row: Row, out: Path) -> Path:
    """Return the folder of a row's run.

    Raises:
        ValueError: for one that is not inside of the study's.
    """
    names = [row["run"], *row["files"], row["evaluation"]]
    for name in map(PurePosixPath, names):
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{name} is outside of the study's folder")
    return out / PurePosixPath(row["run"])


def _has_begun(folder: Path) -> bool:
    """Return whether a run has been trained in its folder, at least in part."""
    return (folder / "checkpoints").is_dir() or (folder / "backbone.pt").is_file()


def _require_same_options(row: Row, out: Path, path: Path) -> None:
    """Raise UserError where a folder holds a run with other options than a row."""
    folder = _folder_of(row, out)
    if not _has_begun(folder) or not (folder / "config.yaml").is_file():
        return
    recorded = config.loads(row["files"]["config.yaml"].replace(_OUT, str(out)), source=str(path))
    existing = config.load(folder / "config.yaml")
    free = FREE if recorded.eval.name == existing.eval.name else (*FREE, "eval.")
    lines = config.differences(recorded, existing)
    if changed := [line for line in lines if not line.startswith(free)]:
        raise UserError(
            f"{folder} holds a run with other options than {path} (its values in brackets):"
            f" {', '.join(changed)}; set --output-dir or another --records"
        )
    identity = _identity_name(row["evaluation"])
    if identity in row["files"] and (folder / identity).is_file():
        earlier = json.loads(row["files"][identity].replace(_OUT, str(out)))
        options = read_json(folder / identity, f"delete {folder / identity}").get("options", {})
        differ = differing(earlier, options)
        if names := [key for key in differ if not f"{key}=".startswith(FREE)]:
            raise UserError(
                f"{(folder / identity).parent} holds an evaluation with other options than {path}:"
                f" {', '.join(names)}; set --output-dir or another --records"
            )


def _unpack(row: Row, out: Path, videos: dict[str, list[str]]) -> None:
    """Write the files of a row, unless its run has begun here.

    Args:
        row: the row.
        out: folder of the study.
        videos: name -> uids.
    """
    folder = _folder_of(row, out)
    if _has_begun(folder):
        return
    files = dict(row["files"])
    columns = row["columns"]
    used = {column["videos"]: videos[column["videos"]] for column in columns.values()}
    content = {"videos": used, "columns": columns}
    for name in columns:
        unpacked(content, name)  # raises for damaged ones
    # also without columns: it marks what came from records
    files[f"eval/{row['evaluation']}/{OUTCOMES}"] = json.dumps(content)
    # the summary last, so that a run counts as finished when all is there
    for name in sorted(files, key=lambda name: name.endswith("summary.json")):
        text = files[name].replace(_OUT, str(out)).encode()
        if not (folder / name).is_file() or (folder / name).read_bytes() != text:
            with replacing(folder / name) as file:
                file.write(text)
