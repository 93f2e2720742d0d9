"""What a model looks at, told of models made by hand: they follow one cue and nothing else."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import REPO, tiny, tiny_ucf101, tool
from vidrobust import config
from vidrobust.config import DataConfig
from vidrobust.data import Record, eval_dataset, ucf101
from vidrobust.data.motionshapes import write_video
from vidrobust.evaluation import bias_table, check_bias, evaluate_bias
from vidrobust.evaluation.natural.bias import ALONE, PAIRED, conflict, partners_of
from vidrobust.evaluation.report.bias_tables import bias_lines
from vidrobust.utils.errors import UserError
from vidrobust.utils.intervals import wilson

CFG = DataConfig(frames=4, stride=2, short_side=32, size=24, workers=0)
CLASSES = ["a", "b"]


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """Four test videos of two classes, clips that a test fills in by hand, and where rows go."""
    records, _ = ucf101(tiny_ucf101(tmp_path / "data"), "test", 1)
    return records, tmp_path / "out"


def _rows(records, out, predict, names, *, others=None, seed=0, clips=1, cfg=CFG):
    out.mkdir(exist_ok=True)
    where = list(range(len(records)))
    return evaluate_bias(
        predict,
        lambda: eval_dataset(cfg, records, clips),
        None,
        where,
        names,
        out,
        seed=seed,
        others=others or {},
        batch_size=3,
        workers=0,
        device=torch.device("cpu"),
    )


def test_a_classifier_of_motion_needs_it_and_one_of_looks_does_not(clips):
    """Frames that count change all the time: 0 where anything moves, by looks where the mean says
    so.
    """
    records, out = clips
    records = [Record(r.uid, r.path, 0) for r in records]

    def moves(x):
        changed = (x[:, :, 1:] - x[:, :, :-1]).abs().amax((1, 2, 3, 4)) > 0.2
        return torch.stack([changed.float(), 1 - changed.float()], 1)

    rows = _rows(
        records, out, moves, ["freeze", "background", "shuffle", "reverse", "patch"], clips=2
    )
    views = bias_table(rows, CLASSES)["views"]
    acc = {name: entry["acc"] for name, entry in views.items()}
    assert acc == {"clean": 1, "freeze": 0, "background": 0, "shuffle": 1, "reverse": 1, "patch": 1}
    assert views["freeze"]["kept"] == 0 and views["shuffle"]["kept"] == 1
    still = _rows(
        records,
        out.parent / "looks",
        lambda x: torch.tensor([[1.0, 0]]).expand(len(x), -1),
        ["freeze"],
    )
    assert bias_table(still, CLASSES)["views"]["freeze"]["acc"] == 1


@pytest.mark.parametrize(("follows", "bias"), [("own", 1.0), ("other", 0.0), ("neither", None)])
def test_bias_is_1_and_0_of_classifiers_that_follow_one_cue(clips, monkeypatch, follows, bias):
    records, out = clips
    assert [r.label for r in records] == [0, 0, 1, 1]
    # a pair becomes a clip whose corner says both classes
    seen = {}
    monkeypatch.setitem(
        PAIRED, "swapped", lambda x, other, rngs: torch.stack([_code(x), _code(other)], 1)
    )

    def _code(x):
        return x.flatten(1).mean(1)

    def predict(x):
        if x.ndim == 2:  # a pair
            own, other = (
                torch.tensor([seen[round(float(v), 5)] for v in side]) for side in x.unbind(1)
            )
            answer = {"own": own, "other": other, "neither": torch.full_like(own, 2)}[follows]
            return torch.nn.functional.one_hot(answer, 3).float()
        return torch.zeros(len(x), 3)

    dataset = eval_dataset(CFG, records, 1)
    for i, record in enumerate(records):
        clip = dataset[0, i]["clips"].float().div(255).permute(0, 4, 1, 2, 3)
        seen[round(float(_code(clip)), 5)] = record.label
    entry = bias_table(_rows(records, out, predict, ["swapped"]), [*CLASSES, "c"])["views"][
        "swapped"
    ]
    assert entry["bias"] == bias and entry["own"] + entry["other"] == (0 if bias is None else 1)
    assert entry["apart"] > 0 and (entry["bias_ci95"] is None) == (bias is None)
    assert bias is None or entry["bias_ci95"] == list(
        wilson(round(bias * entry["apart"]), entry["apart"])
    )


@pytest.mark.parametrize("name", ["swapped", "swapped_frozen"])
def test_a_classifier_of_backgrounds_and_one_of_what_moves_are_told_apart(tmp_path, name):
    """Class 0: a red square moves before dark gray; class 1: a blue one before light gray."""
    records = []
    for i in range(4):
        label = i % 2
        frames = np.full((20, 64, 64, 3), (60, 160)[label], np.uint8)
        for t in range(20):
            frames[t, 20:40, 2 * t : 2 * t + 20] = ((230, 20, 20), (20, 20, 230))[label]
        write_video(tmp_path / f"{i}.avi", frames, codec="mpeg4")
        records.append(Record(f"{i}", str(tmp_path / f"{i}.avi"), label))

    def by_background(x):
        lightness = x[:, :, :, :4].mean((1, 2, 3, 4))  # of the upper rows, where nothing moves
        return torch.stack([-(lightness - 60 / 255).abs(), -(lightness - 160 / 255).abs()], 1)

    def by_square(x):
        redness = (x[:, 0] - x[:, 2]).flatten(1)
        return torch.stack([redness.amax(1), -redness.amin(1)], 1)

    for predict, bias in ((by_background, 0.0), (by_square, 1.0)):
        rows = _rows(records, tmp_path / predict.__name__, predict, [name])
        views = bias_table(rows, CLASSES)["views"]
        assert views["clean"]["acc"] == 1 and views[name]["bias"] == bias


def test_known_second_cues_of_whole_clips_are_told(clips):
    records, out = clips
    rows = _rows(
        records,
        out,
        lambda x: torch.tensor([[0.0, 1]]).expand(len(x), -1),
        [],
        others={0: 1, 1: 0, 2: 1, 3: 0},
    )
    entry = bias_table(rows, CLASSES)["views"]["clean"]
    assert entry["cues"] == ["motion", "texture"]
    assert (entry["own"], entry["other"], entry["bias"]) == (0.5, 0.5, 0.5), (
        "0 and 3 have cues that disagree"
    )


def test_partners_are_of_another_class_and_drawn(clips):
    records, _ = clips
    dataset, drawn = eval_dataset(CFG, records, 1), set()
    for seed in range(20):
        found = partners_of(dataset, [0, 1, 2, 3], seed)
        assert all(records[i].label != records[j].label for i, j in found.items())
        drawn.add(found[0])
    assert drawn == {2, 3} and partners_of(dataset, [0, 1, 2, 3], 3) == partners_of(
        dataset, [0, 1, 2, 3], 3
    )


def test_it_goes_on_where_it_was_killed(clips):
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


def test_a_video_that_does_not_decode_is_wrong_and_told(clips):
    records, out = clips
    broken = [Record("x", str(out.parent / "none.avi"), 1), *records[:2]]
    rows = _rows(
        broken, out, lambda x: torch.tensor([[1.0, 0]]).expand(len(x), -1), ["freeze", "swapped"]
    )
    table = bias_table(rows, CLASSES)
    assert [row["predicted"] for row in rows if row["name"] == "freeze"] == [None, 0, 0]
    assert all(row["predicted"] is None for row in rows if row["name"] == "swapped"), (
        "nor is its partner's pair shown"
    )
    assert (
        table["views"]["freeze"]["acc"] == pytest.approx(2 / 3) and "none.avi" in table["failed"][0]
    )


def test_a_video_of_nan_logits_is_wrong_and_told_apart_from_one_that_does_not_decode(clips):
    records, out = clips
    clip = eval_dataset(CFG, records, 1)[0, 1]["clips"].float().div(255).permute(0, 4, 1, 2, 3)

    def predict(x):
        hit = (x[:, :, 0] - clip[:, :, 0]).abs().flatten(1).amax(1) < 1e-3
        return torch.where(hit.unsqueeze(1), torch.nan, torch.tensor([[1.0, 0.0]]))

    rows = _rows(records, out, predict, [])
    table = bias_table(rows, CLASSES)
    assert [row["predicted"] for row in rows] == [0, None, 0, 0]
    assert table["views"]["clean"]["acc"] == 0.25
    assert table["failed"] == []
    assert table["warnings"] == [
        "1 of 4 videos count as wrong, as the model gives NaN or infinity on them; the first: "
        f"{records[1].uid}: no finite numbers from the model: NaN or infinite logits as clean"
    ]


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_the_model_has_no_logit_for_is_refused(clips, label):
    records, out = clips
    changed = [Record(records[0].uid, records[0].path, label), *records[1:]]
    with pytest.raises(
        UserError, match=f"label={label} of {records[0].uid}: the model has classes 0 to 1"
    ):
        _rows(changed, out, lambda x: torch.tensor([[1.0, 0]]).expand(len(x), -1), [])


def test_conflicts_have_ones_shapes_and_the_others_colours():
    x, y = torch.zeros(2, 3, 1, 32, 32), torch.rand(2, 3, 1, 32, 32) * 0.5
    x[:, :, :, 8:24, 8:24] = 1  # a bright square
    y[:, 1:] = 0  # shades of red
    rngs = [np.random.default_rng(i) for i in range(2)]
    made = conflict(x, y, rngs)
    assert made.shape == x.shape and made[:, 1:].max() < 0.01, "red alone"
    inner, outer = made[:, 0, 0, 10:22, 10:22].mean(), made[:, 0, 0, :6].mean()
    assert inner > outer + 0.1, "brighter where the square is"


def test_shape_and_texture_are_told_apart_by_cue_conflict(tmp_path):
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
        views = bias_table(rows, CLASSES)["views"]
        assert views["clean"]["acc"] == 1 and views["conflict"]["bias"] == bias
        assert views["conflict"]["cues"] == ["shape", "texture"]


def _cfg(*words):
    return config.loads("", ["eval.threats=[linf-0]", *words])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["eval.bias=[shufle]"], "eval.bias: unknown name 'shufle'; did you mean 'shuffle'"),
        (["eval.bias=[freeze]", "data.frames=1"], "eval.bias=freeze: it is of clips"),
        (["eval.bias=[swapped]", "data.frames=1"], "eval.bias=swapped: it is of clips"),
        (["eval.bias=[conflict]"], "it is of images"),
        (["eval.bias=[texture]"], "data.twins is empty"),
        (["eval.bias=[patch,patch]"], "list different ones"),
        (
            ["eval.bias=[conflict]", "data.frames=1", "data.size=8", "data.short_side=8"],
            "have no texture; 9 at least",
        ),
        (["eval.bias=[swapped]", "eval.limit=1"], "two classes are needed"),
    ],
)
def test_what_cannot_be_shown_is_refused(words, reason):
    with pytest.raises(UserError, match=reason.replace("[", r"\[")):
        check_bias(_cfg(*words), [Record("a", "a.avi", 0), Record("b", "b.avi", 1)])


def test_one_class_has_no_cue_that_disagrees():
    with pytest.raises(UserError, match="two classes are needed"):
        check_bias(_cfg("eval.bias=[swapped]"), [Record("a", "a.avi", 0)])


@pytest.mark.parametrize("name", ALONE)
def test_every_view_keeps_the_shape_of_its_clips(name):
    x = torch.rand(2, 3, 4, 24, 24)
    made = ALONE[name](x, [np.random.default_rng(i) for i in range(2)])
    assert (
        made.shape == x.shape and made.min() >= 0 and made.max() <= 1 and not torch.equal(made, x)
    )


def test_the_report_says_what_was_found(clips):
    records, out = clips
    rows = _rows(records, out, lambda x: x.flatten(1)[:, :2], ["freeze", "swapped"])
    text = "\n".join(bias_lines(bias_table(rows, CLASSES) | {"views_of": "1x1"}))
    for part in (
        "## What it looks at",
        "| freeze | one frame | ",
        "| swapped | what moves, not background | ",
        "* freeze: ",
    ):
        assert part in text
    assert bias_lines(None) == []


def test_the_tools_measure_it(tmp_path):
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
    assert "## What it looks at" in report and "are they of this data set?" not in report
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
