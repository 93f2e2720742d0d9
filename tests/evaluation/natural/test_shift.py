"""Another data set's videos, answered among the classes that both have."""

import json
from functools import partial

import pytest
import torch

from tests.helpers import REPO, SHARED, counting_video, tiny, tiny_ucf101, tool
from vidrobust import config
from vidrobust.data import build_records
from vidrobust.evaluation.natural.shift import (
    UCF_HMDB,
    among,
    evaluate_shift,
    other_records,
    shared_classes,
    shift_lines,
)
from vidrobust.utils.errors import UserError


def test_classes_of_ucf101_and_hmdb51_meet_in_concepts():
    shared = shared_classes(
        ["Archery", "Biking", "Punch", "BoxingSpeedBag", "YoYo"], ["punch", "ride_bike", "chew"]
    )
    assert shared.concepts == ["ride_bike", "punch"]
    assert shared.own == {1: 0, 2: 1, 3: 1} and shared.other == {0: 1, 1: 0}
    turned = shared_classes(["punch", "ride_bike", "chew"], ["Archery", "Biking", "Punch"])
    assert turned.concepts == ["punch", "ride_bike"] and turned.other == {1: 1, 2: 0}


def test_the_table_joins_no_classes_that_both_sides_have_by_name():
    ucf = [
        "HandstandPushups",
        "HandstandWalking",
        "Diving",
        "CliffDiving",
        "Punch",
        "BoxingSpeedBag",
    ]
    shared = shared_classes(ucf, [name.lower() for name in ucf[::-1]])
    assert shared.own == {i: i for i in range(6)} and shared.other == {i: 5 - i for i in range(6)}


def test_names_that_punctuation_alone_tells_apart_stay_apart():
    names = ["\u8dd1\u6b65", "\u8d70\u8def", "c++", "c#", "a b", "a_b"]
    shared = shared_classes(names, names)
    assert shared.own == {i: i for i in range(6)} == shared.other


def test_names_are_enough_but_for_case_and_punctuation():
    shared = shared_classes(["n01440764", "Ice Cream", "cat"], ["n01440764", "ice_cream", "dog"])
    assert shared.concepts == ["n01440764", "Ice Cream"] and shared.other == {0: 0, 1: 1}
    assert shared_classes(["a"], ["b"]).concepts == []


@pytest.mark.skipif(not (SHARED / "splits").is_dir(), reason="needs ../shared/data/splits")
def test_every_class_of_the_table_is_one_of_the_official_lists():
    lists = (SHARED / "splits/ucf101").rglob("classInd.txt")
    ucf = {
        line.split()[1] for path in lists for line in path.read_text().splitlines() if line.strip()
    }
    names = {path.name for path in (SHARED / "splits/hmdb51").rglob("*split1.txt")}
    hmdb = {name.split("_test_split")[0] for name in names}
    assert len(ucf) == 101 and len(hmdb) == 51
    for theirs, others in UCF_HMDB.values():
        assert set(theirs) <= ucf and set(others) <= hmdb


def test_the_best_class_of_a_concept_answers_and_others_do_not():
    logits = torch.tensor([[9.0, 1, 2, 0], [0, 5, 0, 6], [0, 0, 3, 1]])  # class 0 has no concept
    assert among(logits, {1: 0, 2: 1, 3: 0}, 2).tolist() == [1, 0, 1]


@pytest.fixture
def sets(tmp_path):
    """One with classes Alpha and Beta, and one list of these, and of a class that only it has."""
    root = tiny_ucf101(tmp_path / "data")
    for i in range(3):
        counting_video(tmp_path / f"other/beta/{i}.avi", 20, first=3000 + 50 * i)
        counting_video(tmp_path / f"other/gamma/{i}.avi", 20, first=4000 + 50 * i)
    for i in range(2):
        counting_video(tmp_path / f"other/alpha/{i}.avi", 20, first=5000 + 50 * i)
    return root, tmp_path / "other"


def _cfg(sets, *words):
    own = [f"data.root={sets[0]}", "eval.shift.name=class_folder", f"eval.shift.root={sets[1]}"]
    keys = {word.split("=")[0] for word in words}
    return config.loads("", tiny(*(word for word in own if word.split("=")[0] not in keys), *words))


def test_it_is_measured_among_shared_classes_beside_the_own_videos_of_these(sets):
    cfg = _cfg(sets)
    test, classes = build_records(cfg.data, "test")
    (sets[1] / "beta/1.avi").write_bytes(b"")
    others = other_records(cfg, classes)

    def measure():
        return evaluate_shift(
            cfg,
            lambda x: torch.tensor([[1.0, 9]]).expand(len(x), -1),
            others,
            test,
            sets[1],
            torch.device("cpu"),
        )

    found = measure()
    assert (found["n"], found["concepts"], found["own_n"], found["own_acc"]) == (
        5,
        ["Alpha", "Beta"],
        4,
        0.5,
    )
    (sets[1] / "beta/1.avi").unlink()
    assert measure() == found, "rows are read, not made again"
    assert found["acc"] == pytest.approx(2 / 5)
    assert found["per_class"] == {"Alpha": 0, "Beta": pytest.approx(2 / 3)}, "one does not decode"
    assert "1.avi" in found["failed"][0]
    assert (
        "5 videos of the 2 classes that it shares" in "\n".join(shift_lines(found))
        and shift_lines(None) == []
    )


def _measure(cfg, out, predict, others=None):
    test, classes = build_records(cfg.data, "test")
    out.mkdir(exist_ok=True)
    return evaluate_shift(
        cfg, predict, others or other_records(cfg, classes), test, out, torch.device("cpu")
    )


def test_rows_of_another_model_or_data_set_are_refused(sets, tmp_path):
    cfg, weight = _cfg(sets), torch.tensor([[1.0, 9]])
    found = _measure(cfg, tmp_path / "out", lambda x: weight.expand(len(x), -1))
    assert _measure(cfg, tmp_path / "out", lambda x: weight.expand(len(x), -1)) == found
    with pytest.raises(
        UserError, match="shift.jsonl holds rows of another model; choose another folder, or delete"
    ):
        _measure(cfg, tmp_path / "out", lambda x: -weight.expand(len(x), -1))
    (sets[1] / "beta/0.avi").unlink()
    with pytest.raises(UserError, match="shift.jsonl holds rows of another list of videos"):
        _measure(cfg, tmp_path / "out", lambda x: weight.expand(len(x), -1))


def test_one_that_was_interrupted_goes_on_with_the_videos_that_are_left(sets, tmp_path):
    cfg = _cfg(sets, "eval.clips=1", "eval.batch_size=2")
    seen = []

    def predict(x, last=10**6):
        seen.append(len(x))
        if sum(seen) > last:
            raise KeyboardInterrupt
        return x.mean((1, 3, 4))[:, :2]

    whole = _measure(cfg, tmp_path / "whole", partial(predict))
    needed, out = sum(seen), tmp_path / "out"
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        _measure(cfg, out, partial(predict, last=needed - 3))
    seen.clear()
    assert _measure(cfg, out, partial(predict)) == whole
    assert 3 <= sum(seen) <= 3 + 2 + 2, "the last batches, and two clips that recognise the model"
    assert sorted(path.name for path in out.iterdir()) == ["shift.identity.json", "shift.jsonl"]


def test_a_video_of_nan_logits_is_wrong_and_warned_of(sets, tmp_path):
    found = _measure(_cfg(sets), tmp_path / "out", lambda x: torch.full((len(x), 2), torch.nan))
    assert (found["acc"], found["own_acc"], found["failed"]) == (0, 0, [])
    assert "9 of 9 videos count as wrong, as the model gives NaN" in found["warnings"][0]


def test_a_model_of_fewer_classes_is_refused(sets, tmp_path):
    with pytest.raises(
        UserError, match="class 1 is shared, and the model gives 1 logits; take a model of the data"
    ):
        _measure(_cfg(sets), tmp_path / "out", lambda x: torch.zeros(len(x), 1))


def test_none_is_measured_where_none_is_named(sets):
    cfg = config.loads("", tiny(f"data.root={sets[0]}"))
    assert other_records(cfg, ["Alpha"])[0] == []


def test_no_shared_class_is_refused(sets):
    with pytest.raises(
        UserError,
        match=r"no video of .* \(alpha, beta, gamma, ...\) is of a class of ucf101 \(Omega, ...\)",
    ):
        other_records(_cfg(sets), ["Omega"])


def test_one_shared_class_is_no_question(sets):
    with pytest.raises(
        UserError, match="Beta alone is shared with ucf101, and any answer among one class is right"
    ):
        other_records(_cfg(sets), ["Beta", "Omega"])


def test_videos_of_the_own_lists_are_no_shift(sets, tmp_path):
    """By another fold, by a folder of them, and by a link to either."""
    train, classes = build_records(_cfg(sets).data, "train")
    (tmp_path / "link").symlink_to(sets[0] / "videos")
    for words in (
        ["eval.shift.name=ucf101", "eval.shift.root="],
        [f"eval.shift.root={sets[0]}/videos"],
        [f"eval.shift.root={tmp_path}/link"],
    ):
        test, _ = build_records(_cfg(sets).data, "test")
        with pytest.raises(
            UserError,
            match=r"eval.shift: \d+ of \d+ videos are of the own training or test list, first",
        ):
            other_records(_cfg(sets, *words), classes, train + test)
    assert other_records(_cfg(sets), classes, train)[0]


def test_folders_that_spelling_alone_tells_apart_are_told(sets, caplog):
    for name in ("be_ta", "Be.ta"):
        (sets[1] / "beta").rename(sets[1] / "be-ta") if (sets[1] / "beta").exists() else None
        counting_video(sets[1] / name / "x.avi", 20, first=9000)
    counting_video(sets[1] / "omega/x.avi", 20, first=9100)
    other_records(_cfg(sets), ["Alpha", "Beta", "Omega"])
    assert (
        "eval.shift: Be.ta, be-ta, be_ta are left out, which spelling alone tells apart"
        in caplog.text
    )


def test_a_motionshapes_that_is_not_there_is_not_drawn_for_a_shift(sets, tmp_path):
    with pytest.raises(UserError, match="eval.shift.root=.*/typo: no such folder"):
        other_records(
            _cfg(sets, "eval.shift.name=motionshapes", f"eval.shift.root={tmp_path}/typo"),
            ["Alpha"],
        )
    assert not (tmp_path / "typo").exists()


def test_at_most_eval_limit_videos_and_mistakes_are_told_by_their_option(sets):
    assert len(other_records(_cfg(sets, "eval.limit=2"), ["Alpha", "Beta"])[0]) == 2
    for word, told in (
        ("eval.shift.name=hmbd51", "eval.shift.name: unknown name 'hmbd51'; did you mean 'hmdb51'"),
        ("eval.shift.root=nowhere", "eval.shift.root"),
    ):
        words = [f"data.root={sets[0]}", "eval.shift.name=hmdb51", f"eval.shift.root={sets[1]}"]
        kept = [other for other in words if other.split("=")[0] != word.split("=")[0]]
        with pytest.raises(UserError, match=told):
            other_records(config.loads("", tiny(*kept, word)), ["Beta"])


def test_the_tools_measure_it(sets, tmp_path):
    words = [f"data.root={sets[0]}", "eval.threats=[]", "eval.shift.name=class_folder"]
    page = REPO / "configs/ucf101_csl.yaml"
    done = tool(
        "train_net",
        "--cfg",
        page,
        *tiny(*words, f"eval.shift.root={sets[1]}"),
        "--output-dir",
        "out",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out/eval/pgd/summary.json").read_text())
    assert (
        summary["shift"]["n"] == 5
        and "## On class_folder" in (tmp_path / "out/eval/pgd/report.md").read_text()
    )
    (sets[1] / "beta/1.avi").rename(sets[1] / "beta/other.avi")
    again = ("eval.threats=[]", "eval.shift.name=class_folder", f"eval.shift.root={sets[1]}")
    done = tool("test_net", "--checkpoint", "out", *again, cwd=tmp_path)
    assert done.returncode == 1 and "of other videos of eval.shift" in done.stderr, done.stderr
    done = tool(
        "train_net",
        "--cfg",
        page,
        *tiny(*words, "eval.shift.root=nowhere"),
        "--output-dir",
        "no",
        cwd=tmp_path,
    )
    assert done.returncode == 1 and "nowhere" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "no").exists()
