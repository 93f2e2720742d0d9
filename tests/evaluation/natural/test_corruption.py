import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import tiny, tiny_ucf101
from vidrobust import checkpoint, config
from vidrobust.corruptions import MissingEncoder
from vidrobust.data import Corrupted, Failure, Record
from vidrobust.evaluation import evaluate
from vidrobust.evaluation.natural import corruption as module
from vidrobust.evaluation.natural.corruption import without_effect
from vidrobust.evaluation.natural.corruption_summary import (
    ClassAccuracy,
    CorruptionAccuracy,
    corruption_table,
    read_baseline,
    relative_to,
)
from vidrobust.evaluation.settings import MeasureSettings
from vidrobust.training.loop import train
from vidrobust.utils.errors import UserError

WORDS = [
    "eval.threats=[]",
    "eval.corruption.names=[contrast,sampling,h264_crf]",
    "eval.corruption.severities=[1,5]",
]
CLASSES = ["a", "b"]
SETTINGS = MeasureSettings(lambda x: x, Path(), 8, 0, torch.device("cpu"))
MODULE = sys.modules["vidrobust.evaluation.evaluate"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    top = tmp_path_factory.mktemp("corruption")
    root = tiny_ucf101(top / "data", train=3, test=3)
    cfg = config.loads("", tiny(f"data.root={root}", "method.name=supervised"))
    return cfg, checkpoint.read_checkpoint(train(cfg, top / "run"))


def run(trained, out, *words):
    cfg, state = trained
    given = {word.split("=")[0] for word in words}
    usual = [word for word in WORDS if word.split("=")[0] not in given]
    return asdict(evaluate(config.loads(config.to_yaml(cfg), [*usual, *words]), state, out))


def rows(**predicted):
    """Return rows of four videos with the labels 0, 0, 1, 1.

    predicted: name of a corruption -> four lists, each with a prediction per severity.
    """
    return [
        {"index": i, "label": i // 2, "kind": kind, "name": name, "predicted": answers[i]}
        for i in range(4)
        for name, answers in predicted.items()
        for kind in ["shift" if name.startswith("set_") else "corruption"]
    ]


CLEAN = [[0], [0], [1], [0]]  # 3 of 4
FOG = [[0, 0], [0, 1], [0, 0], [0, None]]  # 2 of 4, 1 of 4
BLUR = [[0, 0], [0, 0], [1, 1], [0, 0]]  # 3 of 4 twice


def test_the_table_matches_numbers_computed_by_hand():
    table = corruption_table(rows(clean=CLEAN, fog=FOG, blur=BLUR), [2, 4], CLASSES)
    assert table.clean_acc == 0.75 and table.n == 4
    fog, blur = table.corruptions["fog"], table.corruptions["blur"]
    assert fog.acc == [0.5, 0.25] and blur.acc == [0.75, 0.75]
    assert fog.mean_acc == 0.375 and fog.gamma_a == 0.625 and fog.gamma_r == 0.5
    assert blur.gamma_a == blur.gamma_r == 1 and fog.kind == "corruption"
    assert table.mpc == 0.5625 and table.rpc == 0.75
    assert table.gamma_a == np.mean([0.625, 1]) and table.gamma_r == np.mean([0.5, 1])
    assert table.mce is None and table.relative_mce is None
    assert table.per_class == {
        "a": ClassAccuracy(clean_acc=1.0, mpc=(0.75 + 1) / 2),
        "b": ClassAccuracy(clean_acc=0.5, mpc=(0 + 0.5) / 2),
    }


def test_errors_relative_to_a_baseline_match_numbers_computed_by_hand():
    table = corruption_table(rows(clean=CLEAN, fog=FOG, blur=BLUR), [2, 4], CLASSES)
    accuracies = {"fog": [0.25, 0.25], "blur": [0.5, 0.25]}
    corruptions = {
        name: CorruptionAccuracy(acc=acc, mean_acc=0, gamma_a=0, gamma_r=0)
        for name, acc in accuracies.items()
    }
    baseline = replace(table, clean_acc=0.5, corruptions=corruptions)
    relative = relative_to(table, baseline)
    fog, blur = relative.corruptions["fog"], relative.corruptions["blur"]
    assert fog.ce == pytest.approx(100 * (0.5 + 0.75) / 1.5) and blur.ce == pytest.approx(
        100 * 0.5 / 1.25
    )
    assert fog.relative_ce == pytest.approx(100 * (0.25 + 0.5) / 0.5) and blur.relative_ce == 0
    assert relative.mce == pytest.approx((fog.ce + blur.ce) / 2)
    table = corruption_table(rows(clean=CLEAN, fog=FOG), [2, 4], CLASSES)
    assert relative_to(table, table).mce == relative_to(table, table).relative_mce == 100
    one_severity = relative_to(
        corruption_table(rows(clean=CLEAN, fog=[[0], [1], [0], [0]]), [4], CLASSES), baseline
    )
    assert one_severity.mce == pytest.approx(100 * 0.75 / 0.75), (
        "the baseline may have more severities"
    )
    assert relative_to(table, None).mce is None and table.mce is None


def test_a_shifted_data_set_is_in_the_table_but_in_no_mean():
    with_shift = corruption_table(
        rows(clean=CLEAN, fog=FOG, set_x=[[1], [1], [0], [0]]), [2, 4], CLASSES
    )
    without = corruption_table(rows(clean=CLEAN, fog=FOG), [2, 4], CLASSES)
    assert with_shift.corruptions["set_x"].kind == "shift"
    assert with_shift.corruptions["set_x"].acc == [0]
    same = ("clean_acc", "mpc", "rpc", "gamma_a", "gamma_r", "per_class")
    assert [getattr(with_shift, key) for key in same] == [getattr(without, key) for key in same]


def test_relative_measures_are_none_if_no_clean_video_is_correct():
    wrong = [[1], [1], [0], [0]]
    table = corruption_table(rows(clean=wrong, fog=FOG), [1, 2], CLASSES)
    assert table.rpc is None and table.gamma_r is None and table.corruptions["fog"].gamma_r is None


@pytest.mark.usefixtures("whole_reports")
def test_an_evaluation_with_corruptions_and_without_attacks(trained, tmp_path):
    summary = run(trained, tmp_path)
    table = summary["corruption"]
    assert list(table["corruptions"]) == ["contrast", "sampling", "h264_crf"] and table[
        "severities"
    ] == [1, 5]
    assert summary["clean_acc"] == table["clean_acc"] and summary["n"] == 6
    assert summary["curve"] == [] and summary["robust_acc"] is None and summary["warnings"] == []
    lines = [json.loads(line) for line in (tmp_path / "corruptions.jsonl").read_text().splitlines()]
    assert [(row["index"], row["name"]) for row in lines] == [
        (i, name) for i in range(6) for name in ("clean", *table["corruptions"])
    ]
    hits = [row["predicted"][1] == row["label"] for row in lines if row["name"] == "contrast"]
    assert table["corruptions"]["contrast"]["acc"][1] == np.mean(hits)
    text = (tmp_path / "report.md").read_text()
    assert (
        "6 videos corrupted" in text
        and "| h264_crf |" in text
        and "mPC" in text
        and "Adversarial robustness" not in text
    )
    for picture in ("corruptions.png", "corruption_curves.png"):
        assert picture in text and (tmp_path / picture).stat().st_size > 5000
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.filterwarnings("ignore:the gradient is 0")  # two steps of training may end anywhere
def test_attacks_and_corruptions_are_in_one_report(trained, tmp_path):
    summary = run(trained, tmp_path, "eval.threats=[linf-0,linf-8/255]")
    assert (
        summary["clean_acc"]
        == summary["corruption"]["clean_acc"]
        == summary["curve"][0]["robust_acc"]
    )
    text = (tmp_path / "report.md").read_text()
    assert (
        "attacked and corrupted" in text
        and "Adversarial robustness" in text
        and "## Corruptions" in text
    )


@pytest.mark.parametrize(("average", "answer"), [("logits", 0), ("probabilities", 1)])
def test_the_logits_or_probabilities_of_clips_are_averaged(average, answer):
    """One clip prefers class 0 strongly, and two prefer 1: its large logit decides the mean of
    logits, but no probability is above 1.
    """
    logits = torch.tensor([[4.0, 0.0], [0.0, 1.9], [0.0, 1.9]])
    clips = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1, 1).expand(3, 1, 8, 8, 3)
    corrupted = Corrupted(0, [("fog", 1), ("fog", 2)], [clips, Failure(0, "v", 0, "bad")])
    predict = lambda x: logits[(255 * x[:, 0, 0, 0, 0]).round().long()]  # noqa: E731
    settings = replace(SETTINGS, view_average=average)
    assert module._classify(predict, corrupted, settings) == [answer, None]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_condition_with_nan_logits_has_no_prediction_but_a_reason(value):
    clips = torch.arange(2, dtype=torch.uint8).view(2, 1, 1, 1, 1).expand(2, 1, 8, 8, 3)
    corrupted = Corrupted(0, [("clean", 0), ("fog", 1), ("fog", 2)], [clips, clips + 2, clips])
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [value, 1.0]])
    predict = lambda x: logits[(255 * x[:, 0, 0, 0, 0]).round().long()]  # noqa: E731
    record = Record("a.avi", "/a.avi", 1)
    answers = module._classify(predict, corrupted, SETTINGS, record)
    assert answers == [1, None, 1]
    clean, fog = module._rows(corrupted, record, answers)
    assert clean["error"] is None
    assert (
        fog["error"]
        == "a.avi: no finite numbers from the model: NaN or infinite logits under fog at severity 1"
    )


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_a_logit_is_refused(label):
    clips = torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8)
    corrupted = Corrupted(0, [("clean", 0)], [clips])
    with pytest.raises(
        UserError,
        match=f"label={label} of a.avi: the model has classes 0 to 1; leave the video out",
    ):
        module._classify(
            lambda x: torch.zeros(len(x), 2),
            corrupted,
            SETTINGS,
            Record("a.avi", "/a", label),
        )


def test_outputs_that_are_not_logits_are_refused():
    corrupted = Corrupted(0, [("clean", 0)], [torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8)])
    with pytest.raises(UserError, match="give lambda x: model"):
        module._classify(lambda x: (torch.zeros(len(x), 2),), corrupted, SETTINGS)


def test_a_classifier_of_nan_is_reported_and_has_accuracy_0(trained, tmp_path, monkeypatch):
    """The features are finite, so that kNN and the probe do not refuse the model."""
    monkeypatch.setattr(
        MODULE,
        "_classifier",
        lambda *_: ("own head", lambda x: torch.full((len(x), 2), torch.nan)),
    )
    words = ["eval.threats=[linf-1/255]", "eval.bias=[freeze]", "data.frames=2"]
    summary = run(trained, tmp_path, *words)
    assert (
        summary["corruption"]["clean_acc"]
        == summary["corruption"]["mpc"]
        == summary["robust_acc"]
        == 0
    )
    assert summary["bias"]["views"]["clean"]["acc"] == 0
    warnings = [
        line
        for line in summary["warnings"]
        if "count as wrong, because the model gives NaN or infinity" in line
    ]
    assert len(warnings) == 3, "one each for attacks, corruptions and cues"
    assert summary["failed"] == [], "every video decodes"
    assert "the model gives NaN or infinity" in (tmp_path / "report.md").read_text()


def test_clips_of_a_video_are_averaged(trained, tmp_path):
    """The clean accuracy is that of the head over the same views."""
    summary = run(trained, tmp_path, "eval.unit=video", "eval.clips=3")
    assert summary["clean_acc"] == summary["representation"]["head"]["acc"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_killed_after_any_row_continues_to_the_same_files(
    trained, tmp_path, monkeypatch, workers
):
    words = ["eval.batch_size=2", f"data.workers={workers}"]  # one corruption per batch
    run(trained, tmp_path / "whole", *words)
    real = module._rows
    for stop in (1, 5, 14):
        calls = []

        def rows_until(*args, calls=calls, stop=stop):
            calls.append(1)
            if len(calls) > stop:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(module, "_rows", rows_until)
        with pytest.raises(KeyboardInterrupt):
            run(trained, tmp_path / "cut", *words)
    monkeypatch.setattr(module, "_rows", real)
    with open(tmp_path / "cut/corruptions.jsonl", "a") as file:
        file.write('{"index": 5, "na')  # cut in the middle of a line
    run(trained, tmp_path / "cut", *words)
    for name in ("corruptions.jsonl", "summary.json", "report.md"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_bad_video_counts_as_wrong_everywhere(trained, tmp_path):
    cfg, state = trained
    root = tiny_ucf101(tmp_path / "data", train=3, test=3)
    broken = sorted(root.glob("videos/*/*.avi"))[-1]
    broken.write_bytes(b"no video")
    with pytest.raises(UserError, match="videos that do not decode: 1"):
        evaluate(
            config.loads(config.to_yaml(cfg), [*WORDS, f"data.root={root}"]),
            state,
            tmp_path / "out",
        )
    lines = [
        json.loads(line) for line in (tmp_path / "out/corruptions.jsonl").read_text().splitlines()
    ]
    failed = [row for row in lines if row["error"]]
    assert len(failed) == 4 and [row["predicted"] for row in failed] == [
        [None],
        *[[None, None]] * 3,
    ]
    assert broken.name in failed[0]["error"]
    assert (
        max(
            json.loads((tmp_path / "out/summary.json").read_text())["corruption"]["corruptions"][
                "contrast"
            ]["acc"]
        )
        < 1
    )


def test_corruptions_without_effect_are_reported():
    names = ["fog", "freeze", "temporal_blur"]
    assert without_effect(names, 1, images=True) == [
        "images: nothing changes under freeze, temporal_blur"
    ]
    assert without_effect(names, 1, images=False) == [
        "clips of one frame: nothing changes under temporal_blur"
    ]
    assert without_effect(names, 4, images=False) == without_effect(["fog"], 1, images=True) == []


def test_a_codec_without_encoder_is_refused_before_any_work(monkeypatch, trained, tmp_path):
    def missing(names):
        raise MissingEncoder(f"this PyAV has no encoder for {names[-1]}: install it")

    monkeypatch.setattr(module, "require_encoders", missing)
    with pytest.raises(
        UserError, match="eval.corruption.names: this PyAV has no encoder for h264_crf"
    ):
        run(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_baseline_gives_relative_errors_and_must_match_the_evaluation(
    trained, tmp_path, monkeypatch
):
    first = run(trained, tmp_path / "a")
    path = tmp_path / "a/summary.json"
    with monkeypatch.context() as patch:
        run(trained, tmp_path / "b")
        patch.setattr(
            MODULE, "evaluate_corruptions", lambda *args, **options: pytest.fail("measured again")
        )
        second = run(trained, tmp_path / "b", f"eval.corruption.baseline={path}")
    assert f"relative to {path}." in (tmp_path / "b/report.md").read_text()
    assert second["corruption"]["baseline"] == str(path) and first["corruption"]["baseline"] is None
    folder = run(trained, tmp_path / "b", f"eval.corruption.baseline={path.parent}")
    assert folder["corruption"]["mce"] == second["corruption"]["mce"]
    for words, reason in (
        (["eval.corruption.names=[contrast,fog]"], "has no fog; measure the baseline"),
        (["eval.corruption.severities=[1,2]"], "has no severity 2; measure the baseline"),
        (
            ["eval.corruption.place=view"],
            "was measured with eval.corruption.place=source, not view",
        ),
        (["eval.limit=3"], "was measured on other videos: n 6, here 3"),
        (["eval.unit=video"], "was measured on other videos: unit clip, here video"),
    ):
        with pytest.raises(UserError, match=reason):
            run(trained, tmp_path / "c", f"eval.corruption.baseline={path}", *words)
    assert not (tmp_path / "c").exists()
    with pytest.raises(UserError, match="was measured on other videos: manifest_sha .*, here 0123"):
        read_baseline(str(path), ["contrast"], [1, 5], "source", {"manifest_sha": "0123"})
    errors = 1 - np.array([e["acc"] for e in first["corruption"]["corruptions"].values()])
    assert second["corruption"]["mce"] == (pytest.approx(100) if errors.sum(1).all() else None)
    for content in ("{}", "no json", '{"corruption": null}', '{"corruption": {"x": 1}}', "[]"):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UserError, match="eval.corruption.baseline="):
            read_baseline(str(tmp_path / "bad.json"), [], [], "source", {})
    with pytest.raises(UserError, match=r"baseline=nowhere.json"):
        read_baseline("nowhere.json", [], [], "source", {})


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["eval.corruption.names=[fogg]"], "eval.corruption.names: unknown corruption 'fogg'"),
        (["eval.corruption.severities=[0]"], "eval.corruption.severities=.*at least 1"),
        (["eval.corruption.severities=[2,2]"], "must list at least one, each once"),
        (["eval.corruption.severities=[]"], "at least one"),
        (["eval.corruption.place=air"], "choose one of source, view"),
    ],
)
def test_options_are_checked(words, reason):
    base = [w for w in WORDS if w.split("=")[0] not in {word.split("=")[0] for word in words}]
    with pytest.raises(UserError, match=reason):
        config.loads("", tiny(*base, *words))
