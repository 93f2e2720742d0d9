"""The docs have of a study what its runs have measured."""

import json
from pathlib import Path

import pytest

from tests.helpers import REPO
from tests.study.helpers import finished_runs
from vidrobust import config
from vidrobust.cli.document import Table
from vidrobust.cli.study_results import RECORDS, recorded_results, results, verdict_rows
from vidrobust.study import Study
from vidrobust.study.claims import Claim

CLAIMS = [
    Claim("low", "a paper", "one is lower", "one", ["radius"], "below", "two"),
    Claim("none", "a paper", "three is lower", "three", ["radius"], "below", "two"),
]
STUDY = Study({"one": [], "two": [], "three": []}, {"d": "d.yaml"}, claims=CLAIMS)


def test_a_page_has_arms_and_verdicts_of_the_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(config.to_yaml(config.Config()))
    runs = finished_runs({"one": [0.2, 0.3], "two": [0.4]})
    content = json.loads(json.dumps(results(STUDY, runs)))
    assert list(content) == ["arms d", "verdicts"]
    lines = Table(**content["arms d"]).markdown().splitlines()
    threats = "linf-0.01 | linf-0.02 | kept linf-0.01 | kept linf-0.02"
    assert lines[0] == f"| arm | seeds | probe | clean | {threats} | mPC | rPC |"
    # the mean of two seeds, and half of its interval: 12.706 standard errors of 5 points
    assert lines[2].startswith(
        "| one | 2 | 90.0 ± 0.0 | 80.0 ± 0.0 | 25.0 ± 63.5 | 12.5 ± 31.8 | 31."
    )
    assert lines[3] == "| two | 1 | 90.0 | 80.0 | 40.0 | 20.0 | 50.0 | 25.0 | - | - |"
    low, none = verdict_rows(content, "study")
    assert low[:6] == ["one is lower", "a paper", "radius: one below two", "0.0", "50", "1"]
    assert low[6] == "**undecided**: seeds in common: 1, at least 2 are needed"
    assert low[7] == "[study](study.md)"
    assert none[3:6] == ["-", "-", "0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", sorted(REPO.glob(f"{RECORDS}/*.jsonl")), ids=lambda path: path.stem
)
def test_the_docs_say_what_their_records_say(path):
    written = json.loads((REPO / f"docs/results/{path.stem}.json").read_text())
    found = recorded_results(REPO, path.stem, written["overrides"])
    assert json.loads(json.dumps(found)) == written


def test_files_of_other_pages_have_no_verdicts():
    assert verdict_rows({"arms": {"columns": [], "rows": []}}, "page") == []
