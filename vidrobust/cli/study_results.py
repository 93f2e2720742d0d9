"""Bring what a study has measured into the docs: docs/results/NAME.json, from its records."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vidrobust.study import (
    FinishedRun,
    Study,
    finished,
    plan,
    read_study,
    require_same,
    summarise,
)
from vidrobust.study.arm_table import Table, threats_of
from vidrobust.study.run_records import read_records
from vidrobust.study.verdicts import Verdict, measured, verdicts
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.typed_json import from_json

RECORDS = "docs/results/records"


def write_results(repo: Path, name: str, overrides: Sequence[str]) -> None:
    """Write docs/results/NAME.json from the records of configs/study/NAME.yaml.

    Args:
        repo: folder of the repository.
        name: of the study.
        overrides: options with which it ran, `key=value`.

    Raises:
        UserError: for records of something else, and of runs with other options.
    """
    content = recorded_results(repo, name, overrides)
    with replacing(repo / f"docs/results/{name}.json") as file:
        file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def recorded_results(repo: Path, name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return what `results` makes of the records of a study, and the options.

    Seeds that the config file does not list are left out.

    Args:
        repo: see `write_results`.
        name: see `write_results`.
        overrides: see `write_results`.
    """
    study = read_study(repo / f"configs/study/{name}.yaml")
    with tempfile.TemporaryDirectory() as folder:
        read_records(repo / RECORDS / f"{name}.jsonl", Path(folder))
        runs = plan(study, Path(folder), overrides)
        for run in runs:
            require_same(run, remedy="the docs would have results of other options")
        return {"overrides": list(overrides)} | results(study, finished(runs))


def results(study: Study, runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Return the tables of a study's page: one of arms per data set, and its verdicts."""
    tables = summarise(study, runs)
    content = {f"arms {name}": _arms(table) for name, table in tables.items()}
    return content | {"verdicts": [asdict(row) for row in verdicts(study, runs)]}


def _arms(table: Table) -> dict[str, Any]:
    """Return the table of a data set's arms, as `document.Table` reads it."""
    threats = threats_of(table)
    columns = {"probe": "probe", "clean": "clean"}
    columns |= {f"robust {threat}": threat for threat in threats}
    columns |= {f"kept {threat}": f"kept {threat}" for threat in threats}
    columns |= {"mpc": "mPC", "rpc": "rPC"}
    rows = []
    for arm, result in table.items():
        spreads = [result.measures.get(key) for key in columns]
        cells = [
            None if s is None else [100 * x for x in (s.mean, s.half) if x is not None]
            for s in spreads
        ]
        rows.append([arm, result.n, *cells])
    return {
        "columns": ["arm", "seeds", *columns.values()],
        "rows": rows,
        "format": "{:.1f} ± {:.1f}",
        "formats": {"seeds": "{}"},
        "missing": "-",
    }


def read_verdicts(content: dict[str, Any]) -> list[Verdict]:
    """Return the verdicts in the content of a page's JSON file; none in that of another page."""
    return [from_json(Verdict, entry) for entry in content.get("verdicts", [])]


def verdict_rows(content: dict[str, Any], page: str) -> list[list[str]]:
    """Return the verdicts of a page's JSON file as rows of the overview.

    Args:
        content: of the file.
        page: its name, without an ending.
    """
    rows = []
    several = sum(key.startswith("arms ") for key in content) > 1
    for row in read_verdicts(content):
        test = row.test
        rows.append(
            [
                row.says,
                row.source,
                row.prediction + (f" ({row.dataset})" if several else ""),
                "-" if test is None else measured(test),
                "-" if test is None else str(test.videos),
                "0" if test is None else str(len(test.values)),
                f"**{row.verdict}**" + (f": {row.reason}" if row.reason else ""),
                f"[{page}]({page}.md)",
            ]
        )
    return rows
