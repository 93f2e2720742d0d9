"""study.html says what a study found, how certain it is, and where its runs are."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.pages import in_browser, needs_chromium, on_phone, outside
from tests.study.helpers import finished_runs
from vidrobust.evaluation.report.page import LARGEST
from vidrobust.evaluation.report.svg_frame import ticks
from vidrobust.study import Study, study_page, summarise, write_study

ROBUST = {"csl": [0.2, 0.3, 0.4], "fnr": [0.5, 0.4, 0.6], "sup": [0.2, 0.35, 0.4]}


def _page(folder: Path, runs, **options) -> str:
    """Return study.html of runs, of which csl is the baseline."""
    options = {"arms": {}, "datasets": {}, "baseline": "csl"} | options
    study = Study(**options, config_file=Path("study_x.yaml"))
    tables = summarise(study, runs)
    study_page.write_study_page(folder / "study.html", study, runs, tables)
    return (folder / "study.html").read_text()


class _Reader(HTMLParser):
    """Collect the text of a page, and the values of attributes by name."""

    def __init__(self, html: str):
        super().__init__()
        self.words: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value or "")

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_first_sentences_name_the_best_arm_and_its_lead(tmp_path):
    text = _Reader(_page(tmp_path, finished_runs(ROBUST))).text
    # half of linf-0.01: 25 %, and 10 points above the baseline, half as uncertain
    assert (
        "On d, fnr has the highest robust accuracy when every pixel may move by 5.1/255:"
        " 25.0 ± 12.4 %. That is 10.0 percentage points above the baseline csl (95 % interval over"
        " 3 seeds: -2.4 to 22.4): not decided, as the interval includes 0." in text
    )
    assert "The best of 3 arms is chosen on the same seeds" in text


def test_a_lead_whose_interval_does_not_include_0_is_decided(tmp_path):
    runs = finished_runs({"csl": [0.2, 0.3, 0.4], "sup": [0.6, 0.7, 0.82]})
    text = _Reader(_page(tmp_path, runs)).text
    assert ": decided." in text and "not decided, as" not in text


@pytest.mark.parametrize(
    ("robust", "sentence"),
    [
        ({"csl": [0.4, 0.5], "a": [0.2, 0.3]}, "On d, the baseline csl has the highest"),
        ({"csl": [0.4, 0.5], "a": [0.2, 0.3]}, "10.0 percentage points above the next, a ("),
        ({"csl": [0.4], "a": [0.5]}, "With one common seed that is 5.0 percentage points above"),
        ({"csl": [0.4], "a": [0.5]}, "d: one seed, hence no interval: all arms."),
        ({"csl": [0.4, 0.2], "a": [0.4, 0.2]}, "all 2 arms have the same robust accuracy"),
        ({"csl": [0.4, 0.2]}, "On d, only csl is measured: its robust accuracy"),
        ({"csl": [0.1], "a": [0.4], "b": [0.4]}, "On d, a and b share the highest"),
    ],
)
def test_a_verdict_fits_its_study(tmp_path, robust, sentence):
    assert sentence in _Reader(_page(tmp_path, finished_runs(robust))).text


def test_differences_stand_by_arm_and_seed(tmp_path):
    page = _page(tmp_path, finished_runs(ROBUST))
    rows = [_Reader(row).text for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)]
    assert "fnr +10.0 -2.4 to +22.4 no +15.0 +5.0 +10.0" in rows
    assert "sup +0.8 -2.8 to +4.4 no +0.0 +2.5 +0.0" in rows
    assert "fnr, seed 1: +5.0" in page, "the dots say their numbers"
    assert "Differences from csl, seed by seed" in page


def test_without_a_baseline_accuracies_stand_by_seed(tmp_path):
    page = _page(tmp_path, finished_runs(ROBUST), baseline="")
    rows = [_Reader(row).text for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)]
    assert "fnr 25.0 12.6 to 37.4 25.0 20.0 30.0" in rows
    assert "Accuracies, seed by seed" in page and "Differences from" not in page


def test_all_measures_are_columns_and_accuracies_are_shown_first(tmp_path):
    page = _page(tmp_path, finished_runs(ROBUST))
    boxes = re.findall(r'class="column"[^>]*?( checked)?>([^<]*)</label>', page)
    shown = [title for checked, title in boxes if checked]
    hidden = [title for checked, title in boxes if not checked]
    assert shown == ["probe", "clean", "robust linf-0.01", "robust linf-0.02"]
    assert "effective_rank" in hidden and "fn_removed last" in hidden
    places = [int(place) for place in re.findall(r'data-column="(\d+)"', page)]
    titles = re.findall(r"<th scope=\"col\"[^>]*><button[^>]*>([^<]*)", page)
    assert [titles[place] for place in places] == [title for _, title in boxes]
    assert 'title="standard deviation 10.0; values by seed: 50.0, 40.0, 60.0"' in page


def test_names_are_escaped_and_nothing_is_loaded(tmp_path):
    names = ["<script>alert(1)</script>", '"onload="x', "{{ 7 * 7 }}", "a&b", "x" * 300]
    runs = finished_runs({name: [0.2, 0.3] for name in names})
    page = _page(
        tmp_path, runs, baseline=names[0], comparators=names[3:4], arms={names[0]: ["<b>=1"]}
    )
    reader = _Reader(page)
    assert reader.tags.count("script") == 1 and "onload" not in reader.attributes
    assert "&lt;b&gt;=1" in page and "<b>=1" not in page
    assert all(name in reader.text for name in names)
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    identifiers = reader.attributes["id"]
    assert len(set(identifiers)) == len(identifiers)


def test_the_page_is_valid_html_and_loads_nothing(tmp_path):
    page = _page(tmp_path, finished_runs(ROBUST | {"<i>": [0.3]}))
    assert outside(page) == []


@needs_chromium
def test_titles_sort_and_boxes_show_columns(tmp_path):
    _page(tmp_path, finished_runs(ROBUST))
    answer = in_browser(
        tmp_path / "study.html",
        """
        const box = document.querySelector("input.column:checked");
        const table = document.getElementById(box.dataset.table);
        const cells = () => [...table.rows].map((row) => row.cells[Number(box.dataset.column)]);
        const before = cells().some((cell) => cell.hidden);
        box.click();
        const after = cells().every((cell) => cell.hidden);
        box.click();
        const rows = table.tBodies[0].rows;
        const names = () => [...rows].map((row) => row.cells[0].textContent.trim());
        const button = table.tHead.rows[0].cells[0].querySelector("button");
        button.click(); const up = names();
        button.click(); const down = names();
        return {before, after, down, up};
        """,
        tmp_path,
    )
    assert (answer["before"], answer["after"]) == (False, True)
    assert answer["up"] == sorted(ROBUST) and answer["down"] == sorted(ROBUST, reverse=True)


@needs_chromium
def test_the_page_fits_a_phone(tmp_path):
    _page(tmp_path, finished_runs(ROBUST | {"x" * 200: [0.3, 0.4]}))
    answer = in_browser(
        on_phone(tmp_path / "study.html", tmp_path),
        """
        const frame = document.querySelector("iframe");
        await settled(() => frame.contentDocument.querySelector("footer"));
        const page = frame.contentDocument.documentElement;
        return page.scrollWidth <= page.clientWidth;
        """,
        tmp_path,
    )
    assert answer


def test_reports_of_runs_are_linked_where_they_exist(tmp_path):
    runs = finished_runs({"csl": [0.2, 0.3]})
    places = [tmp_path / "out/d/a #1/seed0", tmp_path / "out/d/a #1/seed1"]
    runs = [
        replace(run, arm=replace(run.arm, folder=place))
        for run, place in zip(runs, places, strict=True)
    ]
    report = places[1] / "eval" / runs[1].arm.cfg.eval.name / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text("")
    page = _page(tmp_path / "out", runs)
    links = [link for link in _Reader(page).attributes["href"] if link != "#main"]
    assert links == [f"d/a%20%231/seed1/eval/{runs[1].arm.cfg.eval.name}/report.html"]


def test_a_study_without_a_finished_run_says_so(tmp_path):
    write_study(Study(arms={"a": []}, datasets={"d": "x"}), [], tmp_path, missing=6)
    text = _Reader((tmp_path / "study.html").read_text()).text
    assert "No run of this study has finished yet." in text
    assert "Not finished: 6 of 6 runs of the study." in text


def test_arms_without_attack_are_compared_by_accuracy(tmp_path):
    runs = finished_runs(ROBUST)
    for run in runs:
        run.summary.curve = []
        run.summary.clean_acc = {"csl": 0.7, "fnr": 0.75, "sup": 0.6}[run.arm.name]
    page = _page(tmp_path, runs)
    assert "On d, fnr has the highest accuracy: 75.0 ± 0.0 %." in page
    assert "Robust accuracy by budget" not in page


def test_a_large_study_keeps_to_its_budget(tmp_path):
    runs = finished_runs({f"arm{arm}": [0.3 + 0.01 * arm] * 10 for arm in range(50)})
    page = _page(tmp_path, runs, baseline="arm0")
    assert len(page.encode()) < LARGEST / 4
    assert "38 other arms" in page, "twelve arms have a colour"
    assert "Not shown, to keep the page small" not in page


def test_a_page_above_its_budget_shows_fewer_measures_by_seed(tmp_path, monkeypatch):
    runs = finished_runs(ROBUST)
    page = _page(tmp_path, runs)
    monkeypatch.setattr(study_page, "LARGEST", len(page.encode()) - 1)
    page = _page(tmp_path, runs)
    assert "Not shown, to keep the page small: robust linf-0.01" in page


@pytest.mark.parametrize(
    ("low", "high", "numbers"),
    [(-3, 12, [-2, 0, 2, 4, 6, 8, 10, 12]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-1e-3, 1e-3, 5)],
)
def test_ticks_are_round_and_inside(low, high, numbers):
    found = ticks(low, high)
    if isinstance(numbers, int):
        assert len(found) == numbers
    else:
        assert found == pytest.approx(numbers)
