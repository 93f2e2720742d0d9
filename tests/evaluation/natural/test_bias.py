"""Measure the cues of models that are made by hand to follow a single cue."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import REPO, tiny, tiny_ucf101, tool
from vidrobust import config
from vidrobust.config import DataConfig
from vidrobust.data import Record, eval_dataset, ucf101
from vidrobust.data.motionshapes import write_video
from vidrobust.evaluation import MeasureSettings, bias_table, check_bias, evaluate_bias
from vidrobust.evaluation.natural.bias import ALONE, PAIRED, conflict, partners_of
from vidrobust.evaluation.report.bias_tables import bias_lines
from vidrobust.utils.errors import UserError
from vidrobust.utils.intervals import wilson

CFG = DataConfig(frames=4, stride=2, short_side=32, size=24, workers=0)
CLASSES = ["a", "b"]


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """Return four test videos of two classes, and the folder of the rows."""
    records, _ = ucf101(tiny_ucf101(tmp_path / "data"), "test", 1)
    return records, tmp_path / "out"


def _rows(records, out, predict, names, *, others=None, seed=0, clips=1, cfg=CFG):
    out.mkdir(exist_ok=True)
    settings = MeasureSettings(predict, out, batch_size=3, workers=0, device=torch.device("cpu"))
    return evaluate_bias(
        settings,
        lambda: eval_dataset(cfg, records, clips),
        None,
        list(range(len(records))),
        names,
        seed=seed,
        others=others or {},
    )


def test_only_a_classifier_of_motion_loses_accuracy_without_motion(clips):
    """Every frame of the videos differs from the one before, so that a still clip shows no motion.

    The first classifier predicts class 0 if anything moves, the second always.
    """
    records, out = clips
    records = [Record(r.uid, r.path, 0) for r in records]

    def moves(x):
        changed = (x[:, :, 1:] - x[:, :, :-1]).abs().amax((1, 2, 3, 4)) > 0.2
        return torch.stack([changed.float(), 1 - changed.float()], 1)

    rows = _rows(
        records, out, moves, ["freeze", "background", "shuffle", "reverse", "patch"], clips=2
    )
    views = bias_table(rows, CLASSES).views
    acc = {name: entry.acc for name, entry in views.items()}
    assert acc == {"clean": 1, "freeze": 0, "background": 0, "shuffle": 1, "reverse": 1, "patch": 1}
    assert views["freeze"].kept == 0 and views["shuffle"].kept == 1
    still = _rows(
        records,
        out.parent / "looks",
        lambda x: torch.tensor([[1.0, 0]]).expand(len(x), -1),
        ["freeze"],
    )
    assert bias_table(still, CLASSES).views["freeze"].acc == 1


@pytest.mark.parametrize(("follows", "bias"), [("own", 1.0), ("other", 0.0), ("neither", None)])
def test_bias_is_1_or_0_for_classifiers_that_follow_one_cue(clips, monkeypatch, follows, bias):
    records, out = clips
    assert [r.label for r in records] == [0, 0, 1, 1]
    # A "swapped" view is replaced by the mean brightness of its two clips, which identifies them.
    label_of_code = {}
    monkeypatch.setitem(
        PAIRED,
        "swapped",
        lambda x, other_class, rngs: torch.stack([_code(x), _code(other_class)], 1),
    )

    def _code(x):
        return x.flatten(1).mean(1)

    def predict(x):
        if x.ndim == 2:  # the brightness of a pair
            own_class, other_class = (
                torch.tensor([label_of_code[round(float(v), 5)] for v in side])
                for side in x.unbind(1)
            )
            answer = {
                "own": own_class,
                "other": other_class,
                "neither": torch.full_like(own_class, 2),
            }[follows]
            return torch.nn.functional.one_hot(answer, 3).float()
        return torch.zeros(len(x), 3)

    dataset = eval_dataset(CFG, records, 1)
    for i, record in enumerate(records):
        clip = dataset[0, i]["clips"].float().div(255).permute(0, 4, 1, 2, 3)
        label_of_code[round(float(_code(clip)), 5)] = record.label
    entry = bias_table(_rows(records, out, predict, ["swapped"]), [*CLASSES, "c"]).views["swapped"]
    assert entry.bias == bias and entry.own + entry.other == (0 if bias is None else 1)
    assert entry.apart > 0 and (entry.bias_ci95 is None) == (bias is None)
    assert bias is None or entry.bias_ci95 == list(wilson(round(bias * entry.apart), entry.apart))


@pytest.mark.parametrize("name", ["swapped", "swapped_frozen"])
def test_swapped_backgrounds_distinguish_classifiers_of_backgrounds_and_of_moving_objects(
    tmp_path, name
):
    """In class 0 a red square moves before dark gray, in class 1 a blue one before light gray."""
    records = []
    for i in range(4):
        label = i % 2
        frames = np.full((20, 64, 64, 3), (60, 160)[label], np.uint8)
        for t in range(20):
            frames[t, 20:40, 2 * t : 2 * t + 20] = ((230, 20, 20), (20, 20, 230))[label]
        write_video(tmp_path / f"{i}.avi", frames, codec="mpeg4")
        records.append(Record(f"{i}", str(tmp_path / f"{i}.avi"), label))

    def by_background(x):
        lightness = x[:, :, :, :4].mean((1, 2, 3, 4))  # of the upper rows, in which nothing moves
        return torch.stack([-(lightness - 60 / 255).abs(), -(lightness - 160 / 255).abs()], 1)

    def by_square(x):
        redness = (x[:, 0] - x[:, 2]).flatten(1)
        return torch.stack([redness.amax(1), -redness.amin(1)], 1)

    for predict, bias in ((by_background, 0.0), (by_square, 1.0)):
        rows = _rows(records, tmp_path / predict.__name__, predict, [name])
        views = bias_table(rows, CLASSES).views
        assert views["clean"].acc == 1 and views[name].bias == bias


def test_unchanged_clips_show_a_bias_where_their_second_cue_is_known(clips):
    records, out = clips
    rows = _rows(
        records,
        out,
        lambda x: torch.tensor([[0.0, 1]]).expand(len(x), -1),
        [],
        others={0: 1, 1: 0, 2: 1, 3: 0},
    )
    entry = bias_table(rows, CLASSES).views["clean"]
    assert entry.cues == ["motion", "texture"]
    assert (entry.own, entry.other, entry.bias) == (0.5, 0.5, 0.5), "the cues of 0 and 3 disagree"


def test_partners_are_drawn_from_other_classes_and_reproducible(clips):
    records, _ = clips
    dataset, partners_of_0 = eval_dataset(CFG, records, 1), set()
    for seed in range(20):
        partners = partners_of(dataset, [0, 1, 2, 3], seed)
        assert all(records[i].label != records[j].label for i, j in partners.items())
        partners_of_0.add(partners[0])
    assert partners_of_0 == {2, 3} and partners_of(dataset, [0, 1, 2, 3], 3) == partners_of(
        dataset, [0, 1, 2, 3], 3
    )


def test_a_killed_measurement_continues_with_the_same_rows(clips):
    records, out = clips
    calls = []

    def predict(x):
        calls.append(len(x))
        return 9 * x.flatten(1)[:, :2]

    names = ["shuffle", "swapped", "motion"]
    whole = _rows(records, out, predict, names)
    lines = (out / "bias.jsonl").read_text().splitlines()
    assert len(lines) == len(whole) == 16
    (out / "bias.jsonl").write_text("\n".join(lines[:7]) + '\n{"ind')
    calls.clear()
    assert _rows(records, out, predict, names) == whole and sum(calls) < 16
    assert _rows(records, out.parent / "alone", predict, names) == whole


def test_a_video_that_does_not_decode_counts_as_wrong_and_is_reported(clips):
    records, out = clips
    broken = [Record("x", str(out.parent / "none.avi"), 1), *records[:2]]
    rows = _rows(
        broken, out, lambda x: torch.tensor([[1.0, 0]]).expand(len(x), -1), ["freeze", "swapped"]
    )
    table = bias_table(rows, CLASSES)
    assert [row["predicted"] for row in rows if row["name"] == "freeze"] == [None, 0, 0]
    assert all(row["predicted"] is None for row in rows if row["name"] == "swapped"), (
        "a video has no prediction if its partner does not decode"
    )
    assert table.views["freeze"].acc == pytest.approx(2 / 3) and "none.avi" in table.failed[0]


def test_a_video_with_nan_logits_counts_as_wrong_and_is_no_decoding_failure(clips):
    records, out = clips
    clip = eval_dataset(CFG, records, 1)[0, 1]["clips"].float().div(255).permute(0, 4, 1, 2, 3)

    def predict(x):
        hit = (x[:, :, 0] - clip[:, :, 0]).abs().flatten(1).amax(1) < 1e-3
        return torch.where(hit.unsqueeze(1), torch.nan, torch.tensor([[1.0, 0.0]]))

    rows = _rows(records, out, predict, [])
    table = bias_table(rows, CLASSES)
    assert [row["predicted"] for row in rows] == [0, None, 0, 0]
    assert table.views["clean"].acc == 0.25
    assert table.failed == []
    assert table.warnings == [
        "1 of 4 videos count as wrong, because the model gives NaN or infinity; the first: "
        f"{records[1].uid}: no finite numbers from the model: NaN or infinite logits as clean"
    ]


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_a_logit_is_refused(clips, label):
    records, out = clips
    changed = [Record(records[0].uid, records[0].path, label), *records[1:]]
    with pytest.raises(
        UserError, match=f"label={label} of {records[0].uid}: the model has classes 0 to 1"
    ):
        _rows(changed, out, lambda x: torch.tensor([[1.0, 0]]).expand(len(x), -1), [])


def test_cue_conflict_images_have_the_shapes_of_one_image_and_the_colours_of_the_other():
    x, y = torch.zeros(2, 3, 1, 32, 32), torch.rand(2, 3, 1, 32, 32) * 0.5
    x[:, :, :, 8:24, 8:24] = 1  # a bright square
    y[:, 1:] = 0  # shades of red
    rngs = [np.random.default_rng(i) for i in range(2)]
    images = conflict(x, y, rngs)
    assert images.shape == x.shape and images[:, 1:].max() < 0.01, "only red"
    inner, outer = images[:, 0, 0, 10:22, 10:22].mean(), images[:, 0, 0, :6].mean()
    assert inner > outer + 0.1, "brighter where the square is"


def test_cue_conflict_distinguishes_classifiers_of_shape_and_of_texture(tmp_path):
    """Class 0 is bright on the left and red, class 1 bright above and blue."""
    records = []
    for i in range(8):
        label, pixels = i % 2, np.zeros((32, 32, 3), np.uint8)
        light = np.random.default_rng(i).integers(0, 90, (32, 32))
        light[(slice(None), slice(16)) if label == 0 else slice(16)] += 150
        pixels[..., 2 * label] = light
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        records.append(Record(f"{i}", str(tmp_path / f"{i}.png"), label))

    def by_shape(x):
        light = x.sum((1, 2))
        return torch.stack([light[:, :, :16].mean((1, 2)), light[:, :16].mean((1, 2))], 1)

    def by_texture(x):
        return x[:, ::2].mean((2, 3, 4))

    one = DataConfig(frames=1, short_side=32, size=32, workers=0)
    for predict, bias in ((by_shape, 1.0), (by_texture, 0.0)):
        rows = _rows(records, tmp_path / predict.__name__, predict, ["conflict"], cfg=one)
        views = bias_table(rows, CLASSES).views
        assert views["clean"].acc == 1 and views["conflict"].bias == bias
        assert views["conflict"].cues == ["shape", "texture"]


def _cfg(*words):
    return config.loads("", ["eval.threats=[linf-0]", *words])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["eval.bias=[shufle]"], "eval.bias: unknown name 'shufle'; did you mean 'shuffle'"),
        (["eval.bias=[freeze]", "data.frames=1"], "eval.bias=freeze: needs clips"),
        (["eval.bias=[swapped]", "data.frames=1"], "eval.bias=swapped: needs clips"),
        (["eval.bias=[conflict]"], "needs images"),
        (["eval.bias=[texture]"], "data.twins is empty"),
        (["eval.bias=[patch,patch]"], "list each name once"),
        (
            ["eval.bias=[conflict]", "data.frames=1", "data.size=8", "data.short_side=8"],
            "are too small for a texture; use at least 9",
        ),
        (["eval.bias=[swapped]", "eval.limit=1"], "two classes are needed"),
    ],
)
def test_views_that_the_clips_cannot_have_are_refused(words, reason):
    with pytest.raises(UserError, match=reason.replace("[", r"\[")):
        check_bias(_cfg(*words), [Record("a", "a.avi", 0), Record("b", "b.avi", 1)])


def test_cues_cannot_disagree_with_a_single_class():
    with pytest.raises(UserError, match="two classes are needed"):
        check_bias(_cfg("eval.bias=[swapped]"), [Record("a", "a.avi", 0)])


@pytest.mark.parametrize("name", ALONE)
def test_every_view_keeps_the_shape_of_its_clips(name):
    x = torch.rand(2, 3, 4, 24, 24)
    view = ALONE[name](x, [np.random.default_rng(i) for i in range(2)])
    assert (
        view.shape == x.shape and view.min() >= 0 and view.max() <= 1 and not torch.equal(view, x)
    )


def test_the_report_lists_accuracies_and_biases(clips):
    records, out = clips
    rows = _rows(records, out, lambda x: x.flatten(1)[:, :2], ["freeze", "swapped"])
    text = "\n".join(bias_lines(replace(bias_table(rows, CLASSES), views_of="1x1")))
    for part in (
        "## Cues that the model uses",
        "| freeze | one frame | ",
        "| swapped | what moves, not background | ",
        "* freeze: ",
    ):
        assert part in text
    assert bias_lines(None) == []


def test_the_command_line_measures_cues(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    assert (
        tool("prepare", "texture", f"data.root={root}", "--output", "t", cwd=tmp_path).returncode
        == 0
    )
    page = REPO / "configs/ucf101_csl.yaml"
    words = [f"data.root={root}", "eval.threats=[]", "eval.bias=[texture,freeze,swapped]"]
    done = tool(
        "train_net",
        "--cfg",
        page,
        *tiny("data.twins=t", *words),
        "--output-dir",
        "out",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out/eval/pgd/summary.json").read_text())
    assert set(summary["bias"]["views"]) == {"clean", "texture", "freeze", "swapped"}
    assert summary["clean_acc"] == summary["bias"]["views"]["clean"]["acc"]
    report = (tmp_path / "out/eval/pgd/report.md").read_text()
    assert "## Cues that the model uses" in report and "are they of this data set?" not in report
    mark = json.loads((tmp_path / "t/prepared.json").read_text())
    mark["sources"] = {name: size + 1 for name, size in mark["sources"].items()}
    (tmp_path / "t/prepared.json").write_text(json.dumps(mark))
    done = tool(
        "test_net", "--checkpoint", "out", "eval.name=doubtful", "eval.bias=[texture]", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "are they of this data set?" in (tmp_path / "out/eval/doubtful/report.md").read_text()
    done = tool("train_net", "--cfg", page, *tiny(*words), "--output-dir", "no", cwd=tmp_path)
    assert (
        done.returncode == 1
        and "data.twins is empty" in done.stderr
        and not (tmp_path / "no").exists()
    )
