import json
import logging
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.helpers import REPO, tiny, tool
from vidrobust.data.motionshapes import write_video
from vidrobust.evaluation.report import drawing
from vidrobust.evaluation.report import tables as markdown
from vidrobust.evaluation.report.markdown import _frames_to_show, rewrite_report, write_report
from vidrobust.evaluation.representation.knn_and_probe import Accuracy
from vidrobust.evaluation.summary import learned_nothing, read_summary
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import start_logging, stop_logging, to_file
from vidrobust.utils.text import visible

pytestmark = pytest.mark.usefixtures("whole_reports")

# Names of files and classes that could break tables, HTML, formulas, terminals or encodings.
NASTY = (
    "a|b",
    "<img src=x onerror=alert(1)>",
    "$x$ costs $5_",
    "red\x1b[31m",
    os.fsdecode(b"caf\xe9"),
    "two\nlines",
    "`code` *bold* _it_",
    "[a](http://b)",
    "back\\slash|",
    "\u202eright",
    "\u2028",
    "100%",
    "&amp;",
)


@pytest.mark.parametrize(
    ("frames", "changed", "expected"),
    [
        (4, [0, 1, 2, 3], [0, 1, 2, 3]),
        (24, range(24), [0, 3, 7, 10, 13, 16, 20, 23]),
        (24, [], [0, 3, 7, 10, 13, 16, 20, 23]),
        (24, [5, 6], [0, 3, 5, 6, 7, 10, 13, 16]),  # changed frames are always shown
        (24, range(4, 14), [4, 5, 7, 8, 9, 10, 12, 13]),
    ],
)
def test_a_picture_shows_changed_frames_first(frames, changed, expected):
    difference = np.full((3, frames, 2, 2), 1e-8)
    difference[1, list(changed), 0, 1] = -0.01
    assert _frames_to_show(difference).tolist() == expected


@pytest.mark.parametrize(
    ("trained", "random", "warns"), [(0.4, 0.3, False), (0.3, 0.3, True), (0.2, 0.3, True)]
)
def test_a_model_no_better_than_random_weights_gives_a_warning(trained, random, warns):
    accuracies = {"trained_probe": trained, "random_probe": random}
    lines = learned_nothing({name: Accuracy(acc, [], 9) for name, acc in accuracies.items()})
    assert bool(lines) == warns and all(
        f"({100 * trained:.1f} %) is not above" in line for line in lines
    )


@pytest.mark.parametrize("name", NASTY)
def test_a_name_in_a_table_stays_one_cell_of_plain_text(name):
    title, rule, row = markdown.table(["class", "acc"], [name, "1.0"])
    assert title == "| class | acc |" and rule == "| --- | --- |"
    unescaped = row.replace("\\\\", "").replace("\\|", "")
    assert unescaped.count("|") == 3 and len(row.splitlines()) == 1
    assert "<" not in row and "\x1b" not in row and not re.search(r"(?<!\\)\]\(", row)
    row.encode("utf-8")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a|b", r"a\|b"),
        ("<b>", "&lt;b&gt;"),
        ("$5", "$5"),
        ("\x1b[31m", r"\\x1b[31m"),
        (os.fsdecode(b"\xe9"), r"\\xe9"),
        ("v_Lunges_g01", "v_Lunges_g01"),
        ("_it_", r"\_it\_"),
        ("50 ± 2 [1.0]", "50 ± 2 [1.0]"),
        ("-", "-"),
    ],
)
def test_markup_in_names_is_escaped_and_ordinary_text_is_unchanged(name, shown):
    assert markdown.escape(name) == shown


def test_code_spans_hold_bars_and_backticks():
    assert markdown.code("a|b") == r"`a\|b`" and markdown.code("a`b") == "``a`b``"
    assert markdown.table(["x"], [markdown.code("[a,b]")])[2] == "| `[a,b]` |"


@pytest.mark.parametrize("name", NASTY)
def test_a_figure_shows_any_name(name, tmp_path):
    figure = Figure(figsize=(2, 1))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(drawing.label(name))
    axes.plot([0, 1], label=drawing.label(name))
    axes.legend()
    drawing.save(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 500
    assert "$" not in name or axes.title.get_text().count(r"\$") == name.count("$")


def test_the_log_escapes_control_characters_and_undecodable_bytes(tmp_path, capsys):
    start_logging(tmp_path)
    try:
        for name in NASTY:
            to_file.parent.warning(f"bad video: {name}")
    finally:
        stop_logging()
    text = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert len(text.splitlines()) == len(NASTY) and "\x1b" not in text and r"caf\xe9" in text
    printed = capsys.readouterr().err
    assert "\x1b" not in printed and r"red\x1b[31m" in printed
    assert logging.getLogger("vidrobust").handlers == []


@pytest.mark.parametrize(
    ("text", "shown"), [("a\tb", r"a\tb"), ("é ü 中", "é ü 中"), ("\x9b1m", r"\x9b1m"), ("", "")]
)
def test_visible_text_is_one_line(text, shown):
    assert visible(text) == shown


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Return the folder of an evaluation whose classes and videos have hostile names."""
    top = tmp_path_factory.mktemp("nasty")
    for number, name in enumerate(("$a$|<img onerror>", "b\x1b[31m", os.fsdecode(b"caf\xe9"))):
        folder = top / "data" / name
        folder.mkdir(parents=True)
        # Black, gray and white clips: a probe separates them under any weights, and the larger
        # budget breaks them.
        for index in range(6):
            frames = np.full((16, 48, 48, 3), 20 * index // 6 + 110 * number, np.uint8)
            write_video(folder / f"$v{index}$_|{index}.avi", frames)
    (top / "page.yaml").write_text("data: {name: class_folder, root: data, validation: 0.3}")
    options = (
        "eval.threats=[linf-0,linf-64/255,linf-128/255]",
        "eval.corruption.names=[contrast]",
        "eval.bias=[patch]",
    )
    words = [
        word for word in tiny(*options, "train.max_steps=2") if not word.startswith("data.name")
    ]
    done = tool("train_net", "--cfg", "page.yaml", "--output-dir", "out", *words, cwd=top)
    assert done.returncode == 0, done.stderr
    return top


def test_an_evaluation_with_hostile_names_is_reported(evaluated):
    out = evaluated / "out/eval/pgd"
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "<img" not in text and "\x1b" not in text and r"$a$\|&lt;img onerror&gt;" in text
    assert list((out / "clips").glob("*.png")) and (out / "curve.png").is_file()
    assert json.loads((out / "summary.json").read_text())["corruption"]["per_class"].keys() >= {
        "$a$|<img onerror>"
    }


def test_a_failed_report_can_be_written_again_without_the_data(evaluated, monkeypatch):
    out = evaluated / "out/eval/pgd"
    first = (out / "report.md").read_bytes()
    summary = read_summary(out / "summary.json")
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda *a, **k: 1 / 0)
        with pytest.raises(
            UserError, match="numbers are safe, but the report failed .*--report-only"
        ) as error:
            write_report(out, summary, ["x", "y", "z"])
    assert "\n" not in str(error.value)
    (out / "report.md").unlink()
    (evaluated / "data").rename(evaluated / "moved")
    try:
        done = tool("test_net", "--checkpoint", "out", "--report-only", cwd=evaluated)
    finally:
        (evaluated / "moved").rename(evaluated / "data")
    assert done.returncode == 0, done.stderr
    assert (out / "report.md").read_bytes() == first


def test_the_report_is_the_same_in_a_locale_without_utf_8(evaluated):
    out = evaluated / "out/eval/pgd"
    first = (out / "report.md").read_bytes()
    env = {
        **os.environ,
        "PYTHONPATH": str(REPO),
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    command = [
        sys.executable,
        str(REPO / "tools/test_net.py"),
        "--checkpoint",
        "out",
        "--report-only",
    ]
    done = subprocess.run(command, cwd=evaluated, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "report.md").read_bytes() == first


@pytest.mark.parametrize("what", ["nothing", "no summary", "no classes"])
def test_rewriting_the_report_needs_a_finished_evaluation(tmp_path, what):
    if what != "nothing":
        (tmp_path / "identity.json").write_text("{}")
    if what == "no classes":
        parts = {
            "dataset": "d",
            "split": "test",
            "n": 1,
            "chance": 0.5,
            "branch": "clean",
            "views": {},
            "representation": {},
            "curve": [],
            "failed": [],
            "warnings": [],
            "corruption": None,
            "geometry": {},
        }
        (tmp_path / "summary.json").write_text(json.dumps(parts))
    with pytest.raises(
        UserError,
        match="names no classes" if what == "no classes" else "holds no finished evaluation",
    ):
        rewrite_report(tmp_path)
