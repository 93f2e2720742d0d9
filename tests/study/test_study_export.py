"""study.csv and study.tex have the numbers of study.json."""

import csv
import json
import re
from pathlib import Path

import pytest

from tests.study.helpers import finished_runs
from vidrobust.study import Study, write_study
from vidrobust.study.arm_table import measures_by_seed
from vidrobust.study.best_arms import best_arms
from vidrobust.utils.latex import latex_escape

HOSTILE = "a,\"b\" & c_%$#{}~^\\<>| [x] *-- '' `é"
ROBUST = {
    "csl": [0.2, 0.3, 0.4],
    HOSTILE: [0.71, 0.69, 0.733],
    "near": [0.75, 0.7, 0.74],
    "sup": [0.1, 0.05],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study whose baseline is csl; seed 1 of the hostile arm is missing."""
    study = Study(arms={}, datasets={}, baseline="csl", config_file=Path("study_x.yaml"))
    runs = [
        run for run in finished_runs(ROBUST) if not (run.arm.name == HOSTILE and run.arm.seed == 1)
    ]
    write_study(study, runs, tmp_path, extra=("csv", "tex"))
    return tmp_path


def test_every_number_of_the_json_is_in_the_csv(folder):
    numbers = json.loads((folder / "study.json").read_text())["d"]
    with (folder / "study.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    by_key = {(row["arm"], row["minus"], row["measure"]): row for row in rows}
    assert len(by_key) == len(rows)
    expected = {}
    for arm, entry in numbers.items():
        for measure, spread in entry.items():
            if measure not in ("n", "difference", "gap_closed"):
                expected[arm, "", measure] = spread
        for measure, spread in entry["difference"].items():
            expected[arm, "csl", measure] = spread
    assert by_key.keys() == expected.keys()
    for key, spread in expected.items():
        row = by_key[key]
        assert row["dataset"] == "d"
        for name in ("mean", "std", "half"):
            value = spread[name]
            assert row[name] == "" if value is None else float(row[name]) == value, key
        values = [float(row[f"seed_{seed}"]) for seed in range(3) if row[f"seed_{seed}"]]
        assert values == spread["values"] and int(row["n"]) == len(values)


def test_names_that_are_no_unicode_are_escaped(tmp_path):
    study = Study(arms={}, datasets={}, baseline="csl", config_file=Path("study_x.yaml"))
    runs = finished_runs({"csl": [0.2, 0.3], "a\udc80": [0.4, 0.5]})
    write_study(study, runs, tmp_path, extra=("csv", "tex"))
    assert "a\\udc80" in (tmp_path / "study.csv").read_text()


def test_values_stand_in_the_columns_of_their_seeds(folder):
    with (folder / "study.csv").open(newline="") as file:
        rows = {(r["arm"], r["minus"], r["measure"]): r for r in csv.DictReader(file)}
    row = rows[HOSTILE, "", "robust linf-0.01"]
    assert [row["seed_0"], row["seed_1"], row["seed_2"]] == ["0.71", "", "0.733"]
    row = rows[HOSTILE, "csl", "robust linf-0.01"]
    assert float(row["seed_0"]) == 0.71 - 0.2 and row["seed_1"] == ""


def _unescaped(text: str) -> str:
    """Return plain text from what `latex_escape` returns."""
    names = {
        "textbackslash": "\\",
        "textasciitilde": "~",
        "textasciicircum": "^",
        "textless": "<",
        "textgreater": ">",
        "textbar": "|",
    }
    pattern = r"\\(text\w+)\{\}|\\symbol\{(\d+)\}|\\([&%$#_{}])|\{([\[\]*])\}|([-',])\{\}"

    def plain(match: re.Match[str]) -> str:
        name, code, *others = match.groups()
        if name:
            return names[name]
        return chr(int(code)) if code else next(other for other in others if other)

    return re.sub(pattern, plain, text)


def _tables(text: str) -> list[list[list[str]]]:
    """Return the rows of each table of a file, titles first."""
    tables = []
    for body in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.DOTALL):
        lines = [line for line in body.splitlines() if line != r"\midrule"]
        assert all(line.endswith(r" \\") for line in lines)
        tables.append([line.removesuffix(r" \\").split(" & ") for line in lines])
    return tables


def _cell(spread: dict) -> tuple[str, str]:
    """Return mean and half of an entry of study.json, as a table rounds them."""
    half = spread["half"]
    return f"{100 * spread['mean']:.1f}", "" if half is None else f"{100 * half:.1f}"


def _numbers(cell: str) -> tuple[str, str]:
    """Return mean and half of a cell in LaTeX."""
    match = re.fullmatch(r"\$(?:\\mathbf\{)?(-?[\d.]+)\}?(?: \\pm ([\d.]+))?\$", cell)
    assert match, cell
    return match[1], match[2] or ""


def test_the_latex_tables_have_the_numbers_of_the_json(folder):
    numbers = json.loads((folder / "study.json").read_text())["d"]
    text = (folder / "study.tex").read_text()
    accuracies, apart = _tables(text)
    keys = ["probe", "clean", "robust linf-0.01", "robust linf-0.02"]
    assert accuracies[0] == ["arm", "seeds", "probe", "clean", "linf-0.01", "linf-0.02"]
    assert [_unescaped(row[0]) for row in accuracies[1:]] == list(numbers)
    for row in accuracies[1:]:
        entry = numbers[_unescaped(row[0])]
        assert row[1] == str(entry["n"])
        assert [_numbers(cell) for cell in row[2:]] == [_cell(entry[key]) for key in keys]
    assert [_unescaped(row[0]) for row in apart[1:]] == [name for name in numbers if name != "csl"]
    for row in apart[1:]:
        entry = numbers[_unescaped(row[0])]["difference"]
        assert [_numbers(cell) for cell in row[2:]] == [_cell(entry[key]) for key in keys]


def test_bold_are_the_best_arm_and_those_not_decided_from_it(folder):
    text = (folder / "study.tex").read_text()
    rows = {_unescaped(row[0]): row for row in _tables(text)[0][1:]}
    assert {name for name, row in rows.items() if "mathbf" in row[4]} == {HOSTILE, "near"}
    assert {name for name, row in rows.items() if "mathbf" in row[3]} == set(rows), "all are 0.8"
    assert "mathbf" not in text.split(r"\begin{table}")[2], "differences have no best"
    assert "% Bold: in each column the arm with the highest mean" in text


def test_the_rule_for_bold_takes_differences_seed_by_seed():
    def best(robust):
        return best_arms(measures_by_seed(finished_runs(robust), "d"), "robust linf-0.01")

    # the seeds vary more than the arms differ, but the arms always differ by as much
    assert best({"b": [0.1, 0.4, 0.7], "a": [0.12, 0.42, 0.73]}) == ["a"]
    assert best({"b": [0.2, 0.4, 0.7], "a": [0.12, 0.5, 0.73]}) == ["a", "b"]
    # one seed has no interval: only the same mean is as good
    assert best({"b": [0.3], "a": [0.4], "c": [0.4]}) == ["a", "c"]
    assert best({}) == []


def test_every_character_of_a_name_is_escaped_for_latex():
    assert _unescaped(latex_escape(HOSTILE)) == HOSTILE


def test_one_seed_has_no_interval(tmp_path):
    study = Study(arms={}, datasets={}, baseline="csl")
    write_study(study, finished_runs({"csl": [0.2], "fnr": [0.5]}), tmp_path, extra=("csv", "tex"))
    rows = list(csv.DictReader((tmp_path / "study.csv").open()))
    assert {row["std"] for row in rows} == {""} and {row["half"] for row in rows} == {""}
    assert (
        r"fnr & 1 & $\mathbf{90.0}$ & $\mathbf{80.0}$ & $\mathbf{50.0}$"
        in (tmp_path / "study.tex").read_text()
    )


def test_arms_without_attack_have_tables_without_threats(tmp_path):
    runs = finished_runs({"csl": [0.2, 0.3]})
    for run in runs:
        run.summary.curve = []
        run.summary.suite = ""
    write_study(Study(arms={}, datasets={}), runs, tmp_path, extra=("tex",))
    (table,) = _tables((tmp_path / "study.tex").read_text())
    assert table[0] == ["arm", "seeds", "probe", "clean"]
    assert not (tmp_path / "study.csv").exists(), "it was not asked for"
