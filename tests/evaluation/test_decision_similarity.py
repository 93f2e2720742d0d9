"""Similarity of two models' decisions: closed forms, loops, and folders of evaluations."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from tests.helpers import tiny, tiny_ucf101, tool
from vidrobust import checkpoint, config
from vidrobust.cli.compare import comparison_lines
from vidrobust.evaluation import evaluate
from vidrobust.evaluation.decision_similarity import (
    Comparison,
    agreement,
    compare_evaluations,
    kappa,
)
from vidrobust.training.loop import train
from vidrobust.utils.atomic_files import read_rows
from vidrobust.utils.errors import UserError


def _loop(a, b):
    """Return (observed - expected) / (1 - expected), by loops over decisions."""
    n = len(a)
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / n
    expected = 0.0
    for name in set(a) | set(b):
        expected += sum(x == name for x in a) / n * sum(y == name for y in b) / n
    return (observed - expected) / (1 - expected)


def test_kappa_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    for classes in (2, 5):
        a, b = rng.integers(classes, size=(2, 60))
        b[:20] = a[:20]
        assert kappa(a, b) == pytest.approx(_loop(a.tolist(), b.tolist()))


def test_kappa_of_a_textbook_table():
    """20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: o = 0.7, e = 0.5, kappa = 0.4 (Cohen 1960)."""
    a = np.repeat([1, 1, 0, 0], [20, 5, 10, 15])
    b = np.repeat([1, 0, 1, 0], [20, 5, 10, 15])
    assert agreement(a, b) == 0.7
    assert kappa(a, b) == pytest.approx(0.4)


def test_kappa_of_equal_and_of_opposite_decisions():
    a = np.array([0, 1, 0, 1])
    assert kappa(a, a) == 1
    assert kappa(a, 1 - a) == -1
    assert kappa(np.zeros(4, int), np.zeros(4, int)) == 1, "all agree, also by chance"
    assert kappa(np.zeros(4, int), a) == 0, "a constant model agrees by chance only"


def test_error_consistency_is_that_of_geirhos_et_al():
    """Expected consistency is p1 p2 + (1 - p1)(1 - p2), the kappa of right and wrong."""
    right = np.array([1, 1, 1, 0, 0, 1, 0, 1], bool), np.array([1, 0, 1, 0, 1, 1, 0, 1], bool)
    p1, p2 = (each.mean() for each in right)
    expected = p1 * p2 + (1 - p1) * (1 - p2)
    observed = (right[0] == right[1]).mean()
    assert kappa(*right) == pytest.approx((observed - expected) / (1 - expected))


# --- Folders ---


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two evaluations of two runs on the same videos, with different threats."""
    top = tmp_path_factory.mktemp("pair")
    root = tiny_ucf101(top / "data", train=3, test=4)
    for seed, threats in ((0, "linf-0,linf-4/255"), (1, "linf-4/255,linf-8/255")):
        cfg = config.loads("", tiny(f"data.root={root}", f"seed={seed}"))
        state = checkpoint.read_checkpoint(train(cfg, top / f"run{seed}"))
        words = [f"eval.threats=[{threats}]", "eval.steps=2", "eval.checks=0"]
        evaluate(config.loads(config.to_yaml(cfg), words), state, top / f"{seed}")
    return top


def _copy(pair, tmp_path, name="1"):
    for file in ("summary.json", "predictions.jsonl", "results.jsonl"):
        (tmp_path / file).write_bytes((pair / name / file).read_bytes())
    return tmp_path


def _rewrite(path, change):
    rows = [change(row) for row in read_rows(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row))


def test_clean_and_common_threats_are_compared(pair):
    comparison = compare_evaluations([pair / "0", pair / "1"])
    assert [row.threat for row in comparison.rows] == [None, "linf-4/255"]
    assert comparison.left_out == ["linf-0", "linf-8/255"]
    clean = [read_rows(pair / name / "predictions.jsonl") for name in "01"]
    answers = [[row["trained_probe"] for row in rows] for rows in clean]
    labels = [row["label"] for row in clean[0]]
    row = comparison.rows[0]
    assert row.n == 8
    assert row.agreement == sum(a == b for a, b in zip(*answers, strict=True)) / 8
    assert row.kappa == kappa(*map(np.array, answers))
    right = [np.array(each) == np.array(labels) for each in answers]
    assert row.error_consistency == kappa(*right)
    assert row.acc == [each.mean() for each in right]


def test_attacked_decisions_are_those_of_the_rows(pair):
    row = compare_evaluations([pair / "0", pair / "1"]).rows[1]
    attacked = [
        [
            r["adv_pred"]
            for r in read_rows(pair / name / "results.jsonl")
            if r["threat"] == row.threat
        ]
        for name in "01"
    ]
    assert row.kappa == kappa(*map(np.array, attacked))


def test_a_model_agrees_with_itself(pair):
    for row in compare_evaluations([pair / "0", pair / "0"]).rows:
        assert (row.agreement, row.kappa, row.error_consistency) == (1, 1, 1)
        assert row.agreement_ci95 == row.kappa_ci95 == [1, 1]


def test_intervals_are_seeded(pair):
    folders = [pair / "0", pair / "1"]
    assert compare_evaluations(folders, 3) == compare_evaluations(folders, 3)
    for row in compare_evaluations(folders).rows:
        assert row.agreement_ci95[0] <= row.agreement <= row.agreement_ci95[1]


@pytest.mark.parametrize("key", ["uid", "label"])
def test_other_lists_are_refused(pair, tmp_path, key):
    other = _copy(pair, tmp_path)
    new = {"uid": "zzz", "label": 7}[key]
    _rewrite(other / "predictions.jsonl", lambda row: row | {key: new} if row["label"] else row)
    with pytest.raises(UserError, match="other videos or labels of the test split than"):
        compare_evaluations([pair / "0", other])


def test_a_shorter_list_is_refused(pair, tmp_path):
    other = _copy(pair, tmp_path)
    _rewrite(other / "predictions.jsonl", lambda row: row if "g07" not in row["uid"] else None)
    with pytest.raises(UserError, match=r"first \w+/v_\w+_g07_c01.avi; evaluate both"):
        compare_evaluations([pair / "0", other])


def test_threats_on_other_videos_are_refused(pair, tmp_path):
    other = _copy(pair, tmp_path)
    _rewrite(other / "results.jsonl", lambda row: row if row["index"] % 2 else None)
    with pytest.raises(UserError, match="under linf-4/255 .*eval.limit"):
        compare_evaluations([pair / "0", other])


def test_videos_that_do_not_decode_are_left_out_and_nan_is_an_answer(pair, tmp_path):
    other = _copy(pair, tmp_path)

    def change(row):
        if row["index"] == 0:
            return row | {"adv_pred": None, "error": "a: does not decode"}
        if row["index"] == 1:
            return row | {"adv_pred": None, "error": "b: no finite numbers from the model: NaN"}
        return row

    _rewrite(other / "results.jsonl", change)
    row = compare_evaluations([pair / "0", other]).rows[1]
    assert row.n == 7
    answers = [read_rows(folder / "results.jsonl") for folder in (pair / "0", other)]
    kept = [[r["adv_pred"] for r in part if r["threat"] == "linf-4/255"][1:] for part in answers]
    assert row.agreement == sum(a == b for a, b in zip(*kept, strict=True)) / 7


def test_a_folder_without_an_evaluation_is_refused(pair, tmp_path):
    with pytest.raises(UserError, match="holds no finished evaluation"):
        compare_evaluations([pair / "0", tmp_path])
    (tmp_path / "run/eval").mkdir(parents=True)
    shutil.copytree(pair / "0", tmp_path / "run/eval/pgd")
    with pytest.raises(UserError, match="is a run; name one of its evaluations: .*run/eval/pgd"):
        compare_evaluations([pair / "0", tmp_path / "run"])
    other = _copy(pair, tmp_path)
    (other / "predictions.jsonl").unlink()
    with pytest.raises(UserError, match="predictions.jsonl: holds no predictions of the linear"):
        compare_evaluations([pair / "0", other])


def test_the_command_prints_a_table_and_writes_files(pair, tmp_path):
    done = tool("compare", pair / "0", pair / "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"- {pair / '0'}: ") and "attacked by pgd-" in done.stdout
    assert "differ" not in done.stdout and "| videos | n | accuracy of both |" in done.stdout
    assert "| linf-4/255 | 8 |" in done.stdout
    assert "Threats of one evaluation only: linf-0, linf-8/255." in done.stdout
    for name in ("out.md", "out.json"):
        written = tool("compare", pair / "0", pair / "1", "--output", name, cwd=tmp_path)
        assert written.returncode == 0, written.stderr
    assert (tmp_path / "out.md").read_text() == done.stdout
    assert len(json.loads((tmp_path / "out.json").read_text())["rows"]) == 2


def test_unlike_classifiers_and_attacks_are_named(pair):
    one, other = (str(pair / name) for name in "01")
    row = compare_evaluations([pair / "0", pair / "0"]).rows[0]
    attacked = dataclasses.replace(row, threat="linf-4/255")
    unlike = Comparison(
        [one, other],
        ["a", "b"],
        ["linear probe", "own head"],
        ["pgd-20x1", "autoattack"],
        [row, attacked],
        [],
    )
    text = "\n".join(comparison_lines(unlike))
    assert "The classifiers differ" in text and "The attacks differ" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--output", "out.txt"], "must be a .json or a .md"), (["--seed", "-1"], "at least 0")],
)
def test_the_command_refuses_in_one_line(pair, tmp_path, words, message):
    done = tool("compare", pair / "0", pair / "1", *words, cwd=tmp_path)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr
