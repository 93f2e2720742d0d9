"""leaderboard.html and .md: order, escaping, columns, and controls in a browser."""

import dataclasses
import json
import re

import pytest

from tests.evaluation.report.card_helpers import card
from tests.helpers import tool
from tests.pages import in_browser, needs_chromium, on_phone, outside, parsed
from vidrobust.evaluation.report.leaderboard_page import leaderboard, write_leaderboard
from vidrobust.evaluation.report.ranked_cards import Entry

NASTY = (
    "<script>alert(1)</script>",
    "a\"b'c|d",
    "Ünï 跳跃 🏃",
    "x\u202ey\x1b[31m",
    "{{ 7*7 }}",
    "'",
)


def written(folder, *cards, measure="linf-1/255"):
    entries = [Entry(each, f"p{number}") for number, each in enumerate(cards)]
    board = leaderboard(entries, measure)
    write_leaderboard(folder, board)
    return board, (folder / "leaderboard.html").read_text(encoding="utf-8")


def table_of(folder):
    """Return the rows of leaderboard.md, as title -> cell."""
    lines = (folder / "leaderboard.md").read_text(encoding="utf-8").splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    titles = [cell.strip() for cell in cells[0]]
    return [dict(zip(titles, map(str.strip, row), strict=True)) for row in cells[2:]]


@pytest.fixture
def three():
    """Cards whose order by clean accuracy is another one; the best is doubted."""
    return (
        card("low", 0.1, clean=0.9, architecture="a b"),
        card("high", 0.8, clean=0.5, unreliable=True, unreliable_reasons=["masked <b>"]),
        card("none", None, clean=0.7),
    )


def test_both_files_have_the_same_order_and_ranks(tmp_path, three):
    _, page = written(tmp_path, *three)
    rows = table_of(tmp_path)
    assert [(row["rank"], row["model"]) for row in rows] == [
        ("1", "high (unreliable)"),
        ("2", "low"),
        ("-", "none"),
    ]
    assert re.findall(r'<td class="n rank" data-value="(.*?)"', page) == ["1", "2", ""]


def test_accuracies_have_intervals_and_missing_ones_a_dash(tmp_path, three):
    written(tmp_path, *three)
    rows = table_of(tmp_path)
    assert rows[0]["linf-1/255"] == "80.0 (0.0 to 100.0)"
    assert rows[2]["linf-1/255"] == "-"
    assert rows[0]["clean"] == "50.0 (50.0 to 100.0)"


def test_reasons_for_doubt_are_in_text_and_on_hover(tmp_path, three):
    _, page = written(tmp_path, *three)
    assert 'title="masked &lt;b&gt;"' in page and "<li>masked &lt;b&gt;</li>" in page
    assert "- high: masked &lt;b&gt;" in (tmp_path / "leaderboard.md").read_text()


def test_groups_are_named_where_there_are_several(tmp_path, three):
    board, page = written(tmp_path, *three, card("other", 0.9, dataset="hmdb51"))
    data = "hmdb51, test, fold 1, 20 videos, chance 10 %"
    assert board.groups[0] == f"{data}, clips attacked by pgd-20x1, unknown test videos"
    assert "Ranks are those within a group" in page
    assert [row["group"] for row in table_of(tmp_path)] == ["1", "2", "2", "2"]
    assert [row["rank"] for row in table_of(tmp_path)] == ["1", "1", "2", "-"]


def test_one_group_has_no_column_of_groups(tmp_path, three):
    _, page = written(tmp_path, *three)
    assert "group" not in table_of(tmp_path)[0] and "within a group" not in page


def test_properties_that_are_alike_are_hidden_at_first(tmp_path, three):
    board, _ = written(tmp_path, *three)
    shown = {column.title: column.shown for column in board.columns}
    assert not shown["data set"] and not shown["suite"] and shown["architecture"]
    assert "extra data" not in shown and "reported" not in shown


def test_what_authors_report_stands_beside_what_is_measured(tmp_path):
    board, _ = written(tmp_path, card("a", 0.1, reported={"linf-1/255": 0.5, "clean": 0.75}))
    column = [each.title for each in board.columns].index("reported")
    assert board.rows[0].cells[column].text == "linf-1/255: 50, clean: 75"


@pytest.mark.parametrize("name", NASTY)
def test_any_name_is_shown_and_never_read_as_markup(tmp_path, name):
    fields = ("authors", "venue", "architecture", "training", "dataset", "split", "suite")
    each = card(name, 0.1, **dict.fromkeys(fields, name))
    board, page = written(tmp_path, each, card("b", 0.2))
    tree = parsed(page)
    # the page's own, and nothing of a name
    assert len(tree.findall(".//script")) == 1
    assert "\x1b" not in page and "\u202e" not in page and "49" not in board.rows[0].name
    ranks = [
        json.loads(row.get("data-ranks")) for row in tree.findall(".//tr") if row.get("data-ranks")
    ]
    assert len(ranks) == 2 and all("linf-1/255" in each for each in ranks)
    assert len(table_of(tmp_path)) == 2


def test_the_page_loads_nothing_and_links_only_where_a_card_says(tmp_path):
    _, page = written(tmp_path, card("a", 0.1, link="https://a.b/c?d=1&e='2"))
    assert outside(page) == ["https://a.b/c?d=1&e='2"]


def test_three_hundred_cards_stay_a_small_page(tmp_path):
    cards = [card(f"m{n}", n / 300) for n in range(300)]
    _, page = written(tmp_path, *cards)
    assert len(page) < 2_000_000
    assert table_of(tmp_path)[0]["model"] == "m299"


@needs_chromium
def test_another_accuracy_ranks_and_filters_hide_rows(tmp_path, three):
    written(tmp_path, *three)
    script = """
        const shown = () => [...board.tBodies[0].rows].filter((row) => row.offsetParent)
            .map((row) => row.cells[0].textContent + row.cells[1].dataset.value);
        const set = (element, value) => {
            element.value = value;
            element.dispatchEvent(new Event("input"));
        };
        const found = [shown()];
        set(rankBy, "clean");
        found.push(shown());
        const find = document.querySelector("input.filter");
        set(find, "masked");
        found.push(shown());
        set(find, "");
        document.getElementById("only-reliable").click();
        found.push(shown());
        const selects = [...document.querySelectorAll("select.filter")];
        set(selects.find((each) => each.textContent.includes("a b")), "a b");
        found.push(shown());
        found.push(document.getElementById("ranked-by").textContent);
        set(selects.find((each) => each.textContent.includes("a b")), "");
        document.getElementById("only-reliable").click();
        board.tHead.querySelector(".rank button").click();
        found.push(shown());
        return found;
    """
    found = in_browser(tmp_path / "leaderboard.html", script, tmp_path)
    assert found == [
        ["1high", "2low", "–none"],
        ["1low", "2none", "3high"],
        ["3high"],
        ["1low", "2none"],
        ["1low"],
        "clean",
        # the best rank first, and those of equal rank in the order they had
        ["1low", "2none", "3high"],
    ]


@needs_chromium
def test_the_page_fits_a_phone(tmp_path, three):
    written(tmp_path, *three, card("x" * 80, 0.4, dataset="d" * 60))
    page = on_phone(tmp_path / "leaderboard.html", tmp_path)
    script = """
        const inner = document.querySelector("iframe");
        await settled(() => inner.contentDocument?.getElementById("board"));
        return inner.contentDocument.documentElement.scrollWidth;
    """
    assert in_browser(page, script, tmp_path) <= 390


# --- The command ---


def test_the_command_writes_both_files(tmp_path, three):
    for each in three:
        folder = tmp_path / f"run/eval/{each.name}"
        folder.mkdir(parents=True)
        (folder / "card.json").write_text(json.dumps(dataclasses.asdict(each)))
    done = tool("leaderboard", "run", "--output", "board", "--sort", "clean", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert table_of(tmp_path / "board")[0]["model"] == "low"
    assert (tmp_path / "board/leaderboard.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "nothing: is no card"),
        (["a.json", "--sort", "l2-9"], "--sort l2-9: no card has"),
        (["a.json", "--output", "a.json"], "--output a.json: is a file"),
    ],
)
def test_mistakes_are_one_line(tmp_path, words, message):
    (tmp_path / "a.json").write_text(json.dumps(dataclasses.asdict(card("a", 0.1))))
    done = tool("leaderboard", *words, cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1
