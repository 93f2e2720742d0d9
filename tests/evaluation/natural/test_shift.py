"""Measure accuracy on another data set, over the classes that it shares with the own one."""

import json
import re
from functools import partial

import pytest
import torch
from torchvision.models.video import R3D_18_Weights

from tests.helpers import REPO, SHARED, counting_video, tiny, tiny_ucf101, tool
from vidrobust import config
from vidrobust.data import build_records
from vidrobust.evaluation.natural.class_tables import KINETICS_HMDB, KINETICS_UCF, UCF_HMDB
from vidrobust.evaluation.natural.shift import (
    among,
    evaluate_shift,
    other_records,
    shared_classes,
)
from vidrobust.evaluation.report.shift_text import shift_lines
from vidrobust.utils.errors import UserError


def test_classes_of_ucf101_and_hmdb51_share_concepts():
    shared = shared_classes(
        ["Archery", "Biking", "Punch", "BoxingSpeedBag", "YoYo"], ["punch", "ride_bike", "chew"]
    )
    assert shared.concepts == ["ride_bike", "punch"]
    assert shared.own == {1: 0, 2: 1, 3: 1} and shared.other == {0: 1, 1: 0}
    turned = shared_classes(["punch", "ride_bike", "chew"], ["Archery", "Biking", "Punch"])
    assert turned.concepts == ["punch", "ride_bike"] and turned.other == {1: 1, 2: 0}


def test_classes_with_equal_names_are_not_joined_by_the_table():
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


def test_names_that_differ_only_in_punctuation_stay_apart():
    names = ["\u8dd1\u6b65", "\u8d70\u8def", "c++", "c#", "a b", "a_b"]
    shared = shared_classes(names, names)
    assert shared.own == {i: i for i in range(6)} == shared.other


def test_names_match_regardless_of_case_and_punctuation():
    shared = shared_classes(["n01440764", "Ice Cream", "cat"], ["n01440764", "ice_cream", "dog"])
    assert shared.concepts == ["n01440764", "Ice Cream"] and shared.other == {0: 0, 1: 1}
    assert shared_classes(["a"], ["b"]).concepts == []


@pytest.mark.skipif(not (SHARED / "splits").is_dir(), reason="needs ../shared/data/splits")
def test_every_class_of_the_table_is_in_the_official_lists():
    lists = (SHARED / "splits/ucf101").rglob("classInd.txt")
    ucf = {
        line.split()[1] for path in lists for line in path.read_text().splitlines() if line.strip()
    }
    names = {path.name for path in (SHARED / "splits/hmdb51").rglob("*split1.txt")}
    hmdb = {name.split("_test_split")[0] for name in names}
    assert len(ucf) == 101 and len(hmdb) == 51
    kinetics = set(R3D_18_Weights.DEFAULT.meta["categories"])
    for table, left, right in (
        (UCF_HMDB, ucf, hmdb),
        (KINETICS_UCF, kinetics, ucf),
        (KINETICS_HMDB, kinetics, hmdb),
    ):
        for theirs, others in table.values():
            assert set(theirs) <= left and set(others) <= right
        for side in (0, 1):
            listed = [name for entry in table.values() for name in entry[side]]
            assert len(set(listed)) == len(listed), "a class has one concept"


# Viarow/kinetics-i3d, data/common_classes.py: classes of UCF101, numbers in Kinetics-400; without
# HighJump, whose number there is that of hockey stop
PUBLISHED_UCF = """
Archery 5, BenchPress 19, Biking 22, BlowingCandles 27, Bowling 31, BrushingTeeth 37,
RopeClimbing 66, BabyCrawling 77, CliffDiving 93, HammerThrow 148, HulaHoop 159, JavelinThrow 166,
LongJump 182, Lunges 183, MoppingFloor 198, PlayingCello 223, Drumming 230, PlayingFlute 231,
PlayingGuitar 232, PlayingPiano 241, PlayingViolin 250, PoleVault 253, PullUps 255, PushUps 260,
Biking 267, HorseRiding 273, Shotput 298, SkateBoarding 306, SkyDiving 312, BreastStroke 340,
TaiChi 346, ThrowDiscus 358, WalkingWithDog 378
"""


@pytest.mark.skipif(not (SHARED / "splits").is_dir(), reason="needs ../shared/data/splits")
def test_kinetics_shares_the_published_pairs_with_ucf101():
    ucf = [line.split()[1] for line in (SHARED / "splits/ucf101/classInd.txt").open()]
    kinetics = R3D_18_Weights.DEFAULT.meta["categories"]
    shared = shared_classes(kinetics, ucf)
    for name, number in re.findall(r"(\w+) (\d+)", PUBLISHED_UCF):
        assert shared.own[int(number)] == shared.other[ucf.index(name)]
    assert shared.own[kinetics.index("high jump")] == shared.other[ucf.index("HighJump")]
    assert len(shared.concepts) == 65 and len(shared.other) == 67
    # turned around, the same classes are together
    turned = shared_classes(ucf, kinetics)
    pairs = {(a, b) for a, c in shared.own.items() for b, d in shared.other.items() if c == d}
    assert pairs == {
        (b, a) for a, c in turned.own.items() for b, d in turned.other.items() if c == d
    }


@pytest.mark.skipif(not (SHARED / "splits").is_dir(), reason="needs ../shared/data/splits")
def test_kinetics_shares_concepts_with_hmdb51():
    names = (SHARED / "splits/hmdb51").rglob("*_test_split1.txt")
    hmdb = sorted(path.name.removesuffix("_test_split1.txt") for path in names)
    kinetics = R3D_18_Weights.DEFAULT.meta["categories"]
    shared = shared_classes(kinetics, hmdb)
    found = {
        shared.concepts[c]: sorted(kinetics[i] for i, d in shared.own.items() if d == c)
        for c in range(len(shared.concepts))
    }
    assert found["punch"] == ["punching bag", "punching person (boxing)"]
    assert found["shoot_bow"] == ["archery"] and found["situp"] == ["situp"]
    assert len(found["eat"]) == 9 and len(shared.other) == len(found) == 30


def test_a_concept_has_the_logit_of_its_best_class():
    logits = torch.tensor([[9.0, 1, 2, 0], [0, 5, 0, 6], [0, 0, 3, 1]])  # class 0 has no concept
    assert among(logits, {1: 0, 2: 1, 3: 0}, 2).tolist() == [1, 0, 1]


@pytest.fixture
def sets(tmp_path):
    """Return a data set with classes Alpha and Beta, and one that also has the class gamma."""
    root = tiny_ucf101(tmp_path / "data")
    for i in range(3):
        counting_video(tmp_path / f"other/beta/{i}.avi", 20, first=3000 + 50 * i)
        counting_video(tmp_path / f"other/gamma/{i}.avi", 20, first=4000 + 50 * i)
    for i in range(2):
        counting_video(tmp_path / f"other/alpha/{i}.avi", 20, first=5000 + 50 * i)
    return root, tmp_path / "other"


def _cfg(sets, *words):
    defaults = [
        f"data.root={sets[0]}",
        "eval.shift.name=class_folder",
        f"eval.shift.root={sets[1]}",
    ]
    keys = {word.split("=")[0] for word in words}
    return config.loads(
        "", tiny(*(word for word in defaults if word.split("=")[0] not in keys), *words)
    )


def test_accuracy_is_measured_among_shared_classes_on_both_data_sets(sets):
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

    summary = measure()
    assert (summary.n, summary.concepts, summary.own_n, summary.own_acc) == (
        5,
        ["Alpha", "Beta"],
        4,
        0.5,
    )
    (sets[1] / "beta/1.avi").unlink()
    assert measure() == summary, "rows are read, not measured again"
    assert summary.acc == pytest.approx(2 / 5)
    assert summary.per_class == {"Alpha": 0, "Beta": pytest.approx(2 / 3)}, (
        "one video of Beta does not decode"
    )
    assert "1.avi" in summary.failed[0]
    assert (
        "5 videos of the 2 shared classes" in "\n".join(shift_lines(summary))
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
    summary = _measure(cfg, tmp_path / "out", lambda x: weight.expand(len(x), -1))
    assert _measure(cfg, tmp_path / "out", lambda x: weight.expand(len(x), -1)) == summary
    with pytest.raises(
        UserError, match="shift.jsonl holds rows of another model; choose another folder, or delete"
    ):
        _measure(cfg, tmp_path / "out", lambda x: -weight.expand(len(x), -1))
    (sets[1] / "beta/0.avi").unlink()
    with pytest.raises(UserError, match="shift.jsonl holds rows of another list of videos"):
        _measure(cfg, tmp_path / "out", lambda x: weight.expand(len(x), -1))


def test_an_interrupted_measurement_continues_with_the_remaining_videos(sets, tmp_path):
    cfg = _cfg(sets, "eval.clips=1", "eval.batch_size=2")
    batch_sizes = []

    def predict(x, last=10**6):
        batch_sizes.append(len(x))
        if sum(batch_sizes) > last:
            raise KeyboardInterrupt
        return x.mean((1, 3, 4))[:, :2]

    whole = _measure(cfg, tmp_path / "whole", partial(predict))
    needed, out = sum(batch_sizes), tmp_path / "out"
    batch_sizes.clear()
    with pytest.raises(KeyboardInterrupt):
        _measure(cfg, out, partial(predict, last=needed - 3))
    batch_sizes.clear()
    assert _measure(cfg, out, partial(predict)) == whole
    assert 3 <= sum(batch_sizes) <= 3 + 2 + 2, (
        "the remaining batches, and two clips that identify the model"
    )
    assert sorted(path.name for path in out.iterdir()) == ["shift.identity.json", "shift.jsonl"]


def test_a_video_with_nan_logits_counts_as_wrong_with_a_warning(sets, tmp_path):
    summary = _measure(_cfg(sets), tmp_path / "out", lambda x: torch.full((len(x), 2), torch.nan))
    assert (summary.acc, summary.own_acc, summary.failed) == (0, 0, [])
    assert "9 of 9 videos count as wrong, because the model gives NaN" in summary.warnings[0]


def test_a_model_with_too_few_classes_is_refused(sets, tmp_path):
    with pytest.raises(
        UserError, match="class 1 is shared, but the model gives 1 logits; use a model of the data"
    ):
        _measure(_cfg(sets), tmp_path / "out", lambda x: torch.zeros(len(x), 1))


def test_nothing_is_measured_if_no_data_set_is_named(sets):
    cfg = config.loads("", tiny(f"data.root={sets[0]}"))
    assert other_records(cfg, ["Alpha"])[0] == []


def test_a_data_set_without_a_shared_class_is_refused(sets):
    with pytest.raises(
        UserError,
        match=r"no video of .* \(alpha, beta, gamma, ...\) has a class of ucf101 \(Omega, ...\)",
    ):
        other_records(_cfg(sets), ["Omega"])


def test_a_single_shared_class_is_refused(sets):
    with pytest.raises(
        UserError,
        match="only Beta is shared with ucf101, and any answer among one class is correct",
    ):
        other_records(_cfg(sets), ["Beta", "Omega"])


def test_videos_of_the_own_splits_are_refused(sets, tmp_path):
    """They may come from another fold, from a folder of the videos, or through a link to it."""
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
            match=r"eval.shift: \d+ of \d+ videos are in the own training or test split, first",
        ):
            other_records(_cfg(sets, *words), classes, train + test)
    assert other_records(_cfg(sets), classes, train)[0]


def test_classes_that_differ_only_in_spelling_are_left_out_with_a_warning(sets, caplog):
    for name in ("be_ta", "Be.ta"):
        (sets[1] / "beta").rename(sets[1] / "be-ta") if (sets[1] / "beta").exists() else None
        counting_video(sets[1] / name / "x.avi", 20, first=9000)
    counting_video(sets[1] / "omega/x.avi", 20, first=9100)
    other_records(_cfg(sets), ["Alpha", "Beta", "Omega"])
    assert (
        "eval.shift: Be.ta, be-ta, be_ta are left out, as their names differ only in spelling"
        in caplog.text
    )


def test_a_missing_motionshapes_is_not_generated_for_a_shift(sets, tmp_path):
    with pytest.raises(UserError, match="eval.shift.root=.*/typo: no such folder"):
        other_records(
            _cfg(sets, "eval.shift.name=motionshapes", f"eval.shift.root={tmp_path}/typo"),
            ["Alpha"],
        )
    assert not (tmp_path / "typo").exists()


def test_eval_limit_is_applied_and_errors_name_the_options_of_eval_shift(sets):
    assert len(other_records(_cfg(sets, "eval.limit=2"), ["Alpha", "Beta"])[0]) == 2
    for word, message in (
        ("eval.shift.name=hmbd51", "eval.shift.name: unknown name 'hmbd51'; did you mean 'hmdb51'"),
        ("eval.shift.root=nowhere", "eval.shift.root"),
    ):
        words = [f"data.root={sets[0]}", "eval.shift.name=hmdb51", f"eval.shift.root={sets[1]}"]
        kept = [other for other in words if other.split("=")[0] != word.split("=")[0]]
        with pytest.raises(UserError, match=message):
            other_records(config.loads("", tiny(*kept, word)), ["Beta"])


def test_the_command_line_measures_a_shift(sets, tmp_path):
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
        and "## Shift: accuracy on class_folder"
        in (tmp_path / "out/eval/pgd/report.md").read_text()
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
