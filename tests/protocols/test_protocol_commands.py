"""Protocols by the command line: splits, few labels, transfer, probes, views; what is refused."""

import csv
import dataclasses
import json
import statistics
from types import SimpleNamespace

import pytest
import torch
from torchvision import models

from tests.helpers import tiny, tool
from tests.pages import outside, parsed
from tests.protocols.helpers import place_with_run
from vidrobust import checkpoint, config
from vidrobust.data import Record, build_records, eval_dataset
from vidrobust.evaluation import load_method, read_summary
from vidrobust.evaluation.calibration import Calibration, reliability
from vidrobust.evaluation.natural.open_set import OpenSet
from vidrobust.evaluation.report.markdown import write_report
from vidrobust.evaluation.representation import protocols
from vidrobust.models.stages import stage_tokens
from vidrobust.protocols.splits import _row, measures_of
from vidrobust.study.arm_table import spread_of

QUICK = ("eval.threats=[]", "eval.checks=0", "data.workers=0")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Make UCF101 of two splits, HMDB51, and a run on the first split of UCF101."""
    return place_with_run(tmp_path_factory.mktemp("protocols"))


def _tested(place, *words):
    keys = {word.split("=")[0] for word in words}
    quick = [word for word in QUICK if word.split("=")[0] not in keys]
    return tool("test_net", "--checkpoint", "run", *quick, *words, cwd=place)


def _measured(place, *words):
    done = _tested(place, *words)
    assert done.returncode == 0, done.stderr
    return done.stderr


def _refused(place, *words):
    done = _tested(place, *words)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_splits_are_measured_one_after_the_other(place):
    told = _measured(place, "protocol.name=linear", "protocol.splits=[1,2]")
    assert "what is measured and attacked: linear probe" in told
    assert "4 of 4 test videos of split 2 are training videos of split 1" in told
    summaries = [
        read_summary(place / f"run/eval/linear_split{split}/summary.json") for split in (1, 2)
    ]
    numbers = json.loads((place / "run/eval/linear_splits/splits.json").read_text())
    for name in ("trained_probe", "random_knn"):
        values = [summary.representation[name].acc for summary in summaries]
        assert numbers["measures"][name]["values"] == values
        assert numbers["measures"][name]["mean"] == pytest.approx(statistics.mean(values))
        assert numbers["measures"][name]["std"] == pytest.approx(statistics.stdev(values))
    assert summaries[0].manifest_sha != summaries[1].manifest_sha
    report = (place / "run/eval/linear_splits/report.md").read_text()
    assert "| measure, % | split 1 | split 2 | mean ± sd | 95 % interval |" in report
    text = (place / "run/eval/linear_splits/report.html").read_text()
    tree = parsed(text)
    assert not outside(text) and len(list(tree.iter("table"))) == 1
    probe = numbers["measures"]["trained_probe"]
    sorted_by = {cell.get("data-value") for cell in tree.iter("td")}
    assert {str(value) for value in (*probe["values"], probe["mean"])} <= sorted_by
    first = 100 * next(iter(numbers["measures"].values()))["mean"]
    assert f"Mean over 2 splits: trained_probe {first:.1f} ±" in text
    assert summaries[0].classifier == "linear probe" and summaries[0].protocol == "linear"


@pytest.mark.parametrize(
    ("values", "interval"),
    [([0.5, 1], "0.0 to 100.0"), ([0.5, 0.5], "50.0 to 50.0"), ([0.5, 0.51], "44.1 to 56.9")],
)
def test_the_interval_of_a_fraction_stays_a_fraction(values, interval):
    assert _row("trained_probe", spread_of(values))[-1] == interval


def test_calibration_and_unknown_classes_are_averaged_over_splits():
    """Compare with the summary that they are read from."""
    bins = reliability([0.9, 0.6], [True, False])
    entry = Calibration(None, 2, 0.35, 0.4, 0.75, 0.5, bins)
    attacked = dataclasses.replace(entry, threat="linf-1/255", ece=0.75)
    unknown = OpenSet("hmdb51", 4, 4, 0.8, [0.6, 0.9], 0.3, 0.9, 0.5)
    summary = SimpleNamespace(
        representation={},
        stages={},
        classifier="own head",
        clean_acc=0.5,
        curve=[],
        average_precision={},
        retrieval=None,
        corruption=None,
        shift=None,
        calibration=[entry, attacked],
        open_set=unknown,
    )
    assert measures_of(summary) == {
        "clean, own head": 0.5,
        "calibration error, clean": 0.35,
        "calibration error, linf-1/255": 0.75,
        "AUROC, hmdb51 unknown": 0.8,
    }


@pytest.mark.parametrize(
    ("words", "folder", "measure"),
    [
        (["protocol.name=few_labels", "data.labels=1"], "eval/few_labels_split2", "trained_probe"),
        (["protocol.name=retrieval"], "eval/retrieval_split2", "trained centered R@1"),
        (
            ["protocol.name=slf", "train.epochs=1", "train.batch_size=4"],
            "finetuned/slf_split2/eval/slf_split2",
            "head",
        ),
    ],
)
def test_a_split_is_measured_as_alone(place, tmp_path, words, folder, measure):
    name = words[0].split("=")[1]
    _measured(place, *words, "protocol.splits=[1,2]", "eval.clips=1")
    alone = ("data.fold=2", f"eval.name={name}_split2", "--output-dir", str(tmp_path))
    _measured(place, *words, "eval.clips=1", *alone)
    (path,) = tmp_path.glob("**/summary.json")
    summary = read_summary(path)
    assert read_summary(place / "run" / folder / "summary.json") == summary
    assert (summary.protocol, summary.split) == (name, "test, fold 2")
    numbers = json.loads((place / f"run/eval/{name}_splits/splits.json").read_text())
    assert numbers["measures"][measure]["values"][1] == measures_of(summary)[measure]


def test_a_split_that_is_measured_is_not_measured_again(place, monkeypatch):
    words = ("protocol.name=knn", "protocol.splits=[1,2]")
    _measured(place, *words)
    folder = place / "run/eval"
    before = (folder / "knn_split1/summary.json").stat().st_mtime_ns
    report = (folder / "knn_splits/splits.json").read_bytes()
    (folder / "knn_splits/splits.json").unlink()
    (folder / "knn_split2/summary.json").unlink()  # as after a kill
    _measured(place, *words)
    assert (folder / "knn_split1/summary.json").stat().st_mtime_ns == before
    assert (folder / "knn_splits/splits.json").read_bytes() == report


def test_a_run_per_split_is_named_by_its_number(place):
    for split in (1, 2):
        (place / f"by{split}").symlink_to(place / "run")
    done = tool(
        "test_net",
        "--checkpoint",
        "by{split}",
        *QUICK,
        "protocol.splits=[1,2]",
        "--output-dir",
        "both",
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (place / "both").iterdir()) == [
        "report.html",
        "report.md",
        "split1",
        "split2",
        "splits.json",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["protocol.splits=[1,4]"], "data.name=ucf101 has the splits 1, 2, 3; name each at most"),
        (["protocol.splits=[1,1]"], "name each at most once"),
        (["protocol.splits=[1]", "data.fold=2"], "data.fold is set too; remove one"),
        (
            ["protocol.splits=[1]", "data.name=class_folder"],
            "data.name=class_folder has one split; leave it out",
        ),
        (["protocol.splits=[3]"], "data.fold=3 is not one of this data set's splits"),
        (
            ["protocol.splits=[1,2]", "data.name=motionshapes", "data.root=shapes"],
            "splits 1 and 2 of motionshapes have the same training videos",
        ),
        (["protocol.name=few_labels", "data.labels="], "set data.labels, such as 10%"),
        (["protocol.name=few_labels", "data.labels=x"], " E data.labels=x: must be a percentage"),
        (["protocol.name=transfer"], "the model was trained on ucf101 itself"),
        (["protocol.splits=[1,2]", "--report-only"], "--report-only: writes one report; name it"),
        (
            ["protocol.name=linear_sgd", "eval.classifier=probe"],
            "protocol.name=linear_sgd fits the classifier that is measured; leave it out",
        ),
        (["protocol.name=retreival"], "protocol.name: unknown name 'retreival'"),
        (
            ["protocol.name=linear_sgd", "data.labels=1", "protocol.validation=0.1"],
            "too few sources to hold some out",
        ),
        *(
            (
                [f"protocol.name={name}", "protocol.augmented=2", "data.sampling=interval_uniform"],
                "protocol.augmented=2: data.sampling=interval_uniform draws pairs of clips; set",
            )
            for name in ("linear_sgd", "linear_sgd_best_on_test")
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(place, words, message):
    assert message in _refused(place, *words)


def test_splits_are_refused_before_the_first_is_measured(place):
    words = ("protocol.name=knn", "eval.name=late", "protocol.splits=[1,3]")
    assert "data.fold=3 is not one of this data set's splits" in _refused(place, *words)
    assert not (place / "run/eval/late_split1").exists()


def test_a_split_in_the_name_needs_splits(place):
    done = tool("test_net", "--checkpoint", "run{split}", *QUICK, cwd=place)
    assert (
        done.returncode == 1 and "{split} stands for the numbers of protocol.splits" in done.stderr
    )


def test_transfer_to_the_same_files_in_another_format_is_refused(monkeypatch):
    records = {
        "motionshapes": [Record("a", "/d/a.avi", 0), Record("b", "/d/b.avi", 1)],
        "ucf101": [Record("b", "/d/b.avi", 0)],
        "hmdb51": [Record("c", "/d/c.avi", 0)],
    }
    monkeypatch.setattr(protocols, "build_records", lambda data, split: (records[data.name], []))
    trained, same, other = (
        config.loads("", [f"data.name={name}", "data.root=/d"]) for name in records
    )
    refusal = protocols.PROTOCOLS["transfer"].refusal
    assert refusal(same, trained).startswith("1 of 1 training videos of data.name=ucf101 are those")
    assert refusal(other, trained) == ""


def test_few_labels_are_listed_so_that_others_can_repeat_them(place):
    _measured(place, "protocol.name=few_labels", "data.labels=1")
    folder = place / "run/eval/few_labels"
    summary = read_summary(folder / "summary.json")
    assert summary.train_videos == 2 and summary.labels == "1"
    report = (folder / "report.md").read_text()
    assert "Protocol `few_labels`. kNN and probes learn from 2 training videos" in report
    # no more neighbours than two videos have clips
    assert summary.knn.k == 2 * config.loads("", tiny()).eval.clips
    listed = config.loads("", ["data.name=list", f"data.root={folder / 'labels'}"]).data
    records, classes = build_records(listed, "train")
    assert classes == ["Alpha", "Beta"] and sorted(record.label for record in records) == [0, 1]
    cfg = config.loads("", [f"data.root={place / 'data'}", "data.labels=1"])
    again, _ = build_records(cfg.data, "train")
    assert [record.path for record in records] == [record.path for record in again]
    # test videos are all of them
    assert summary.representation["trained_probe"].n == 4
    assert not any("the model was trained with" in line for line in summary.warnings)


def test_another_data_set_is_not_classified_by_the_head_of_the_first(place, tmp_path):
    """Both have two classes: a head that is matched by their number alone would be measured."""
    words = tiny("method.name=supervised", "eval.enabled=false")
    out = tmp_path / "supervised"
    done = tool("train_net", "--cfg", "config.yaml", "--output-dir", out, *words, cwd=place)
    assert done.returncode == 0, done.stderr
    other = ("data.name=hmdb51", "data.root=hmdb51", *QUICK)
    done = tool("test_net", "--checkpoint", out, *other, "eval.name=other", cwd=place)
    assert done.returncode == 0, done.stderr
    summary = read_summary(out / "eval/other/summary.json")
    assert summary.classifier == "linear probe" and "head" not in summary.representation
    assert not any("the model was trained with" in line for line in summary.warnings)
    # on its own data set it is
    done = tool("test_net", "--checkpoint", out, *QUICK, "eval.name=own", cwd=place)
    assert read_summary(out / "eval/own/summary.json").classifier == "own head"
    # and few labels of it are no few labels
    few = ("protocol.name=few_labels", "data.labels=1")
    done = tool("test_net", "--checkpoint", out, *QUICK, *few, cwd=place)
    assert done.returncode == 0, done.stderr
    warnings = read_summary(out / "eval/few_labels/summary.json").warnings
    assert any(
        line.startswith("data.labels=1: the model was trained with all labels (method.name=super")
        for line in warnings
    )


def test_lists_of_the_first_data_set_are_left_behind(place, tmp_path):
    """Manifest, fold and few labels of a run say nothing of another data set."""
    words = tiny("eval.enabled=false", "data.fold=2", "data.labels=2")
    out = tmp_path / "run2"
    done = tool("train_net", "--cfg", "config.yaml", "--output-dir", out, *words, cwd=place)
    assert done.returncode == 0, done.stderr
    other = ("data.name=hmdb51", "data.root=hmdb51", *QUICK, "protocol.name=transfer")
    done = tool("test_net", "--checkpoint", out, *other, "--dry-run", cwd=place)
    cfg = config.loads(done.stdout)
    assert (cfg.data.fold, cfg.data.labels, cfg.data.name) == (1, "", "hmdb51")
    done = tool("test_net", "--checkpoint", out, *other[2:], "--dry-run", cwd=place)
    assert config.loads(done.stdout).data.fold == 2


def test_transfer_learns_and_tests_on_the_other_data_set(place):
    words = ("protocol.name=transfer", "data.name=hmdb51", "data.root=hmdb51")
    _measured(place, *words, "eval.threats=[linf-1/255]", "eval.steps=2")
    summary = read_summary(place / "run/eval/transfer/summary.json")
    assert (summary.dataset, summary.classifier) == ("hmdb51", "linear probe")
    assert [point.n for point in summary.curve] == [4]
    off = "The self-checks of the attacks were off (`eval.checks=0`)."
    report = place / "run/eval/transfer/report.md"
    assert summary.checks == 0 and off in report.read_text()
    for checks in (None, 3):
        write_report(report.parent, dataclasses.replace(summary, checks=checks), ["a", "b"])
        assert off not in report.read_text()


def test_probes_by_sgd_are_attacked(place):
    words = ("protocol.epochs=3", "protocol.validation=0.5", "eval.threats=[linf-1/255]")
    _measured(place, "protocol.name=linear_sgd", *words, "eval.steps=2", "protocol.augmented=2")
    folder = place / "run/eval/linear_sgd"
    summary = read_summary(folder / "summary.json")
    assert summary.classifier == "linear_sgd" and summary.chosen_on == "held-out training videos"
    assert summary.fitted["settings"] == 24
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    attacked = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert {"trained_linear_sgd", "random_linear_sgd"} <= rows[0].keys()
    assert len(attacked) == len(rows) == 4
    report = (folder / "report.md").read_text()
    assert "chosen on held-out training videos" in report and "| linear_sgd |" in report
    with open(folder / "confusion_trained_linear_sgd.csv", newline="") as file:
        table = list(csv.reader(file))
    right = sum(row["label"] == row["trained_linear_sgd"] for row in rows)
    assert sum(int(table[k + 1][k + 1]) for k in range(2)) == right


def test_every_stage_has_a_probe(place):
    _measured(place, "protocol.stages=true", "eval.name=stages")
    summary = read_summary(place / "run/eval/stages/summary.json")
    assert len(summary.stages) == 5  # stem and four stages of r2plus1d_10
    # the last stage is what the features are the mean of
    *_, last = summary.stages.values()
    assert last == summary.representation["trained_probe"]
    assert "| stage, pooled | linear probe |" in (place / "run/eval/stages/report.md").read_text()


def test_a_finetuned_run_is_trained_once_measured_and_attacked(place, monkeypatch):
    words = ("protocol.name=slf", "train.epochs=4", "train.batch_size=4", "eval.suite=pgd")
    words = (*words, "eval.threats=[linf-1/255]", "augment.shift=2", "model.head_scale=1")
    _measured(place, *words)
    run = place / "run/finetuned/slf"
    summary = read_summary(run / "eval/slf/summary.json")
    assert (summary.classifier, summary.protocol) == ("own head", "slf")
    assert [point.threat for point in summary.curve] == ["linf-1/255"]
    # the frozen backbone is that of the run, bit by bit
    own = checkpoint.measured_backbone(checkpoint.read_checkpoint(place / "run"))
    kept = checkpoint.measured_backbone(checkpoint.read_checkpoint(run))
    assert own.keys() == kept.keys()
    assert all(torch.equal(own[key], kept[key]) for key in own)
    before = (run / "backbone.pt").stat().st_mtime_ns
    (run / "eval/slf/summary.json").unlink()
    _measured(place, *words)
    assert (run / "backbone.pt").stat().st_mtime_ns == before
    # measured again as any run is, without training
    done = tool("test_net", "--checkpoint", run, *QUICK, "eval.name=again", cwd=place)
    assert done.returncode == 0, done.stderr
    again = read_summary(run / "eval/again/summary.json")
    assert again.representation["head"] == summary.representation["head"]
    # another recipe in the same folder is refused
    refusal = _refused(place, *words, "optim.lr=0.02")
    assert "holds a run with other options" in refusal
    assert "repeat all options of its command, attack the finished run by --checkpoint" in refusal
    assert refusal.endswith("run/finetuned/slf eval.name=OTHER, or set --output-dir")
    _measured(place, *words, "optim.lr=0.02", "--overwrite")
    assert config.load(run / "config.yaml").optim.lr == 0.02


def test_a_finetuned_run_of_other_weights_is_refused(place, tmp_path):
    """The path of the weights is the same, and they have been trained again."""
    out = tmp_path / "parent"
    train = ("train_net", "--cfg", "config.yaml", "--output-dir", out, *tiny("eval.enabled=false"))
    assert tool(*train, cwd=place).returncode == 0
    words = ("protocol.name=slf", "train.epochs=1", "train.batch_size=4", *QUICK)
    measure = ("test_net", "--checkpoint", out, *words)
    assert tool(*measure, cwd=place).returncode == 0
    assert tool(*train, "--overwrite", "seed=7", cwd=place).returncode == 0
    done = tool(*measure, "seed=0", cwd=place)
    assert done.returncode == 1 and "model.weights_sha" in done.stderr, done.stderr
    assert tool(*measure, "seed=0", "--overwrite", cwd=place).returncode == 0


def test_options_of_another_protocol_are_told(place):
    words = ("protocol.name=linear", "eval.name=told", "protocol.rates=[1]")
    assert "no effect with protocol.name=linear: protocol.rates" in _measured(place, *words)


def test_splits_can_be_added(place):
    words = ("protocol.name=linear", "eval.name=added")
    _measured(place, *words, "protocol.splits=[1]")
    first = (place / "run/eval/added_split1/summary.json").stat().st_mtime_ns
    _measured(place, *words, "protocol.splits=[1,2]")
    assert (place / "run/eval/added_split1/summary.json").stat().st_mtime_ns == first
    report = (place / "run/eval/added_splits/report.md").read_text()
    assert "| measure, % | split 1 | split 2 |" in report


def test_other_augmentations_are_another_evaluation(place):
    words = ("protocol.name=linear_sgd", "eval.name=augmented", "protocol.augmented=1")
    words = (*words, "protocol.epochs=1", "protocol.validation=0.5")
    _measured(place, *words)
    assert "of other options (augment.flip)" in _refused(place, *words, "augment.flip=0")


def test_a_model_of_another_package_is_finetuned_by_its_protocol(place):
    words = tiny("protocol.name=finetune", "data.root=data", "train.batch_size=4", "train.epochs=1")
    words = [word for word in words if not word.startswith("model.")]
    done = tool("test_net", "--model", "torchvision:r3d_18", *words, cwd=place)
    assert done.returncode == 1 and "has random weights, and the protocol begins" in done.stderr
    torch.save(models.video.r3d_18().state_dict(), place / "r3d.pth")
    spec = ("--model", "torchvision:r3d_18", "--weights", "r3d.pth", "--output-dir", "r3d")
    words = [word.replace("data.size=16", "data.size=32") for word in words]
    words = [word.replace("data.short_side=28", "data.short_side=32") for word in words]
    done = tool("test_net", *spec, *words, cwd=place)
    assert done.returncode == 0, done.stderr
    summary = read_summary(place / "r3d/eval/finetune/summary.json")
    assert summary.classifier == "own head" and summary.protocol == "finetune"


def test_train_net_takes_no_protocol_that_begins_with_a_trained_model(place):
    done = tool("train_net", "--cfg", "config.yaml", *tiny("protocol.name=alf"), cwd=place)
    assert done.returncode == 1
    assert "protocol.name=alf: begins with a trained model; use tools/test_net.py" in done.stderr


def test_three_crops_are_averaged(place):
    """Compare with the mean over clips and crops that are cut here."""
    words = ("eval.crops=3", "eval.clips=2", "eval.name=crops", "data.short_side=24")
    _measured(place, *words, "data.size=16")
    summary = read_summary(place / "run/eval/crops/summary.json")
    assert summary.views == {"attack": "1x1", "representation": "2x3"}
    state = checkpoint.read_checkpoint(place / "run")
    cfg = config.loads(state["config"], [f"data.root={place / 'data'}", *words[1:], "data.size=16"])
    test, _ = build_records(cfg.data, "test")
    dataset = eval_dataset(cfg.data, test, 2, crops=3)
    clips = dataset[0, 0]["clips"]
    assert len(clips) == 6
    centre = eval_dataset(cfg.data, test, 2)[0, 0]["clips"]
    assert torch.equal(torch.as_tensor(clips[1::3]), torch.as_tensor(centre))
    # the frames of tiny videos are square: crops along their width
    left, right = torch.as_tensor(clips[0]), torch.as_tensor(clips[2])
    assert left.shape == right.shape and not torch.equal(left, right)
    # the geometry of features is that of central crops
    words = ("eval.clips=2", "eval.name=centre", "data.short_side=24", "data.size=16")
    _measured(place, *words)
    centred = read_summary(place / "run/eval/centre/summary.json")
    for name in ("uniformity", "effective_rank"):
        value = getattr(summary.geometry["trained"], name)
        assert value == pytest.approx(getattr(centred.geometry["trained"], name), rel=1e-5)


def test_pooled_tokens_of_the_run_are_its_features(place):
    state = checkpoint.read_checkpoint(place / "run")
    cfg = config.loads(state["config"])
    backbone = load_method(cfg, state, 2).model.backbone.eval()
    x = torch.rand(2, 3, cfg.data.frames, cfg.data.size, cfg.data.size)
    assert torch.allclose(stage_tokens(backbone, x)[0].mean(1), backbone(x), atol=1e-6)
