"""Several models attacked, and all measured on all adversarial clips."""

import csv
import json
import shutil
import signal
import sys
import time

import pytest

from tests import processes
from tests.helpers import REPO, tiny, tiny_ucf101, tool
from tests.pages import outside
from tests.processes import TWO_RANKS, Process
from vidrobust import config
from vidrobust.evaluation.adversarial.attack_row import AttackRow
from vidrobust.evaluation.summary import read_summary
from vidrobust.training.loop import train
from vidrobust.utils.atomic_files import read_rows
from vidrobust.utils.intervals import wilson

OPTIONS = ["train.max_steps=1", "eval.clips=1", "eval.pictures=0"]
NAMES = ["one", "two", "<b>three"]  # a folder's name is shown, and not read as HTML
THREATS = ["linf-0", "linf-16/255"]
THREAT_OPTION = f"eval.threats=[{','.join(THREATS)}]"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Train three runs, and write their matrix."""
    top = tmp_path_factory.mktemp("transfer")
    tiny_ucf101(top / "data", train=2, test=3)
    for seed, name in enumerate(NAMES):
        method = "supervised" if name == "one" else "simclr"  # a classifier of its own, and none
        words = (f"data.root={top / 'data'}", f"seed={seed}", f"method.name={method}")
        train(config.loads("", tiny(*words, THREAT_OPTION, *OPTIONS)), top / name)
    shutil.copytree(top, top / "untouched")
    done = tool("transfer", *NAMES, "--output", "matrix", cwd=top)
    assert done.returncode == 0, done.stderr
    return top


def _refused(done):
    lines = [line for line in done.stderr.strip().splitlines() if " I " not in line[:20]]
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return lines[-1]


def _cells(matrix, threat):
    (cells,) = [each["cells"] for each in matrix["threats"] if each["threat"] == threat]
    return cells


def _matrix(place, folder="matrix"):
    return json.loads((place / folder / "transfer.json").read_text())


@pytest.mark.parametrize("threat", THREATS)
def test_the_diagonal_equals_each_models_own_rows(place, threat):
    for i, row in enumerate(_cells(_matrix(place), threat)):
        folder = place / NAMES[i] / "eval/matrix"
        rows = [AttackRow.from_json(each) for each in read_rows(folder / "results.jsonl")]
        robust = [each.robust for each in rows if each.threat == threat]
        assert row[i]["acc"] == sum(robust) / len(robust)
        assert row[i]["ci95"] == list(wilson(sum(robust), len(robust)))
        (point,) = [
            each for each in read_summary(folder / "summary.json").curve if each.threat == threat
        ]
        assert row[i]["acc"] == point.robust_acc


def test_other_cells_are_the_rows_of_the_measured_model(place):
    for j, name in enumerate(NAMES):
        rows = read_rows(place / name / "eval/matrix_measured/transfer.jsonl")
        for i, other in enumerate(NAMES):
            cell = _cells(_matrix(place), "linf-16/255")[i][j]
            assert (cell["attacked"], cell["measured"]) == (other, name)
            ours = [
                row
                for row in rows
                if (row["source"], row["threat"]) == (f"{other}/eval/matrix", "linf-16/255")
            ]
            # attacked, and right without the attack
            saved = read_rows(place / other / "eval/matrix/results.jsonl")
            attacked = {row["index"] for row in saved if row["clean_pred"] == row["label"]}
            right = [r for r in ours if r["clean_pred"] == r["label"] and r["index"] in attacked]
            broken = [row for row in right if row["pred"] != row["label"]]
            assert len(ours) == 6 and cell["clean_right"] == len(right)
            assert cell["acc"] == sum(row["pred"] == row["label"] for row in ours) / 6
            assert cell["success"] == (len(broken) / len(right) if right else None)


def test_own_clips_measured_again_give_no_warning(place):
    assert not any("measured again" in line for line in _matrix(place)["warnings"])


def test_all_files_have_the_same_numbers(place):
    matrix = _matrix(place)
    with open(place / "matrix/transfer.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    cells = [c for each in matrix["threats"] for row in each["cells"] for c in row]
    assert len(lines) == len(cells) == 2 * 3 * 3
    for line, cell in zip(lines, cells, strict=True):
        assert (line["attacked"], line["measured"]) == (cell["attacked"], cell["measured"])
        assert float(line["accuracy"]) == cell["acc"]
        assert float(line["success"]) == cell["success"]
    for name in ("transfer.md", "transfer.html"):
        text = (place / "matrix" / name).read_text()
        assert "<b>three" not in text and "&lt;b&gt;three" in text
        for cell in cells:
            assert f"{100 * cell['acc']:.1f} %" in text
            assert f"{100 * cell['success']:.1f} %" in text


def test_the_page_needs_no_network(place):
    assert outside((place / "matrix/transfer.html").read_text()) == []


def test_a_report_has_the_clips_of_other_models(place):
    text = (place / "one/eval/matrix_measured/report.md").read_text()
    assert "## Adversarial clips of other models" in text
    assert "two/eval/matrix" in text


def test_saved_clips_are_a_test_list_for_any_model(place):
    """The command of README.md gives the accuracy that the attack left after rounding."""
    folder = place / "one/eval/matrix/adversarial/linf-16_255"
    text = " ".join((folder / "README.md").read_text().replace("\\\n", " ").split())
    words = text.partition("--checkpoint RUN ")[2].partition(" These")[0]
    words = words.replace("THIS_FOLDER", str(folder)).split()
    for name in ("one", "two"):
        output = ("--output-dir", f"list_{name}")
        done = tool("test_net", "--checkpoint", name, *words, *output, cwd=place)
        if name == "two":
            assert "eval.classifier=head: the model has no classifier" in _refused(done)
            return
        assert done.returncode == 0, done.stderr
        head = read_summary(place / "list_one/summary.json").representation["head"]
        (_, point) = read_summary(place / "one/eval/matrix/summary.json").curve
        assert (head.acc, head.n) == (point.robust_acc_uint8, 6)


# --- Again, and with more models ---


def test_repeated_it_attacks_nothing_and_gives_the_same_files(place, monkeypatch):
    evaluate = sys.modules["vidrobust.evaluation.evaluate"]
    monkeypatch.setattr(evaluate, "evaluate_robust", None)
    monkeypatch.setattr(evaluate, "evaluate_transfer", None)
    done = tool("transfer", *NAMES, "--output", "again", cwd=place)
    assert done.returncode == 0, done.stderr
    for name in ("transfer.md", "transfer.csv", "transfer.json", "transfer.html"):
        assert (place / "again" / name).read_bytes() == (place / "matrix" / name).read_bytes()


def test_fewer_models_need_no_new_attack(place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path / "copy", symlinks=True)
    evaluate = sys.modules["vidrobust.evaluation.evaluate"]
    monkeypatch.setattr(evaluate, "evaluate_robust", None)
    done = tool("transfer", *NAMES[:2], "--output", "pair", cwd=tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    for threat in THREATS:
        whole = _cells(_matrix(place), threat)
        assert _cells(_matrix(tmp_path / "copy", "pair"), threat) == [row[:2] for row in whole[:2]]


# --- Refusals before any attack ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one"], "transfer: only one is named; name two or more runs"),
        (["eval.steps=1"], "transfer: no model is named"),
        (["one", "nowhere"], "nowhere"),
        (["one", "one"], "one and one are one run"),
        (["one", "./one/checkpoints/last.pt"], "are one run, and their results would share"),
        (["one", "copy"], "one and copy have the same weights"),
        (["one", "two", "eval.threats=[]"], "eval.save=all: eval.threats is []"),
        (["one", "two", "eval.save=broken"], "eval.save: transfer attacks models"),
        (["one", "two", "eval.bias=[freeze]"], "eval.bias: transfer attacks models"),
        (["one", "two", "protocol.name=finetune"], "transfer measures models as they are"),
        (["one", "frames"], "data.frames: one has 2, and frames has 4; models of one matrix need"),
        (["one", "steps"], "eval.steps: one has 2, and steps has 3"),
        (["one", "classes"], "one and classes have other classes (2 and 3; first Gamma)"),
        (["one", "videos"], "one and videos have other test videos"),
        (["one", "two", "data.root=nowhere"], "nowhere"),
    ],
)
def test_models_that_make_no_matrix_are_refused(variants, monkeypatch, words, message):
    done = tool("transfer", *words, "--output", "out", cwd=variants)
    assert message in _refused(done)
    assert not list(variants.glob("*/eval")), "before anything is attacked"
    assert not (variants / "out").exists()


@pytest.fixture(scope="module")
def variants(place, tmp_path_factory):
    """Train runs that differ from the others in one option each."""
    top = tmp_path_factory.mktemp("variants")
    for name in NAMES[:2]:
        shutil.copytree(place / "untouched" / name, top / name)
    shutil.copytree(top / "one", top / "copy")
    tiny_ucf101(top / "three", ("Alpha", "Beta", "Gamma"), train=2, test=3)
    tiny_ucf101(top / "more", train=2, test=4)
    options = {
        "frames": [f"data.root={place / 'data'}", "data.frames=4"],
        "steps": [f"data.root={place / 'data'}", "eval.steps=3"],
        "classes": [f"data.root={top / 'three'}"],
        "videos": [f"data.root={top / 'more'}"],
    }
    for seed, (name, words) in enumerate(options.items(), 10):
        train(config.loads("", tiny(*words, f"seed={seed}", THREAT_OPTION, *OPTIONS)), top / name)
    return top


def test_an_output_that_is_a_file_is_refused(variants):
    (variants / "file").touch()
    done = tool("transfer", "one", "two", "--output", "file", cwd=variants)
    assert "--output file: is a file; name a folder" in _refused(done)


# --- Killed, and spread over ranks ---


def _files(top):
    """Return the saved clips, rows and matrix of a folder of runs."""
    paths = [p for p in top.rglob("*") if p.is_file() and "checkpoints" not in p.parts]
    return {
        path.relative_to(top): path.read_bytes()
        for path in paths
        if "adversarial" in path.parts
        or path.relative_to(top).parts[0] == "matrix"
        or path.name in ("results.jsonl", "transfer.jsonl")
    }


def _command(top, *launcher):
    return Process(
        [*launcher, REPO / "tools/transfer.py", *NAMES, "--output", "matrix"],
        cwd=top,
        stderr=processes.PIPE,
    )


def _copied(place, top):
    for name in NAMES:
        shutil.copytree(place / "untouched" / name, top / name)


@pytest.mark.slow
def test_two_ranks_write_the_files_of_one(place, tmp_path):
    _copied(place, tmp_path)
    process = _command(tmp_path, *TWO_RANKS)
    _, err = process.communicate()
    assert process.returncode == 0, err
    expected = _files(place)
    found = _files(tmp_path)
    assert found.keys() == {name for name in expected if "untouched" not in name.parts}
    for name, content in found.items():
        assert content == expected[name], name


@pytest.mark.slow
def test_killed_at_several_moments_it_ends_with_the_same_files(place, tmp_path):
    _copied(place, tmp_path)
    moments = (
        "one/eval/matrix/results.jsonl",
        "two/eval/matrix/adversarial",
        "two/eval/matrix_measured",
    )
    for moment in moments:
        process = _command(tmp_path)
        while process.poll() is None and not (tmp_path / moment).exists():
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was in the middle"
    process = _command(tmp_path)
    _, err = process.communicate()
    assert process.returncode == 0, err
    expected = _files(place)
    for name, content in _files(tmp_path).items():
        assert content == expected[name], name
