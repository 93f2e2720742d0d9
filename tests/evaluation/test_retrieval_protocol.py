"""The protocol "retrieval" from end to end: results, files, refusals, kills and ranks."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from tests import processes
from tests.helpers import REPO, tiny, tiny_ucf101, tool
from vidrobust import checkpoint, config
from vidrobust.attacks import parse_threat
from vidrobust.data import Record
from vidrobust.evaluation import evaluate, read_summary
from vidrobust.evaluation.adversarial import retrieval_attack
from vidrobust.evaluation.adversarial.attack_settings import check_suite
from vidrobust.evaluation.adversarial.retrieval_attack import LOSSES, Attacked, FeatureAttack
from vidrobust.evaluation.report.markdown import rewrite_report
from vidrobust.evaluation.retrieval_protocol import check_retrieval
from vidrobust.evaluation.retrieval_summary import retrieval_curve
from vidrobust.training.loop import train
from vidrobust.utils.errors import UserError

# the two ranks count the operations of the model
pytestmark = pytest.mark.usefixtures("whole_reports")

WORDS = [
    "protocol.name=retrieval",
    "eval.threats=[linf-0,linf-2/255,linf-8/255]",
    "protocol.attacked=both",
    "eval.clips=2",
    "eval.steps=3",
    "eval.batch_size=4",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    top = tmp_path_factory.mktemp("retrieval")
    root = tiny_ucf101(top / "data", train=4, test=3)
    cfg = config.loads("", tiny(f"data.root={root}", "data.short_side=24"))
    return cfg, checkpoint.read_checkpoint(train(cfg, top / "run")), top


@pytest.fixture(scope="module")
def whole(trained):
    """An evaluation that nothing disturbs."""
    cfg, state, top = trained
    evaluate(_with(cfg), state, top / "whole")
    return top / "whole"


def _with(cfg, *words):
    keys = {word.split("=")[0] for word in words}
    kept = [word for word in WORDS if word.split("=")[0] not in keys]
    return config.loads(config.to_yaml(cfg), [*kept, *words])


def _rows(folder):
    return [json.loads(line) for line in (folder / "retrieval.jsonl").read_text().splitlines()]


def test_clean_recall_is_that_of_the_rows(whole):
    table = read_summary(whole / "summary.json").retrieval
    clean = [row for row in _rows(whole) if row["side"] == "clean"]
    assert (table.n, table.gallery, table.clips) == (6, 8, 2) == (len(clean), 8, 2)
    for entry in table.recall["trained"]["centered"]:
        assert entry.recall == sum(row["rank"] <= entry.k for row in clean) / 6
    assert [entry.k for entry in table.recall["random"]["cosine"]] == [1, 5], "a gallery of eight"
    assert table.chance == 0.5


def test_rows_name_the_nearest_videos(whole):
    for row in _rows(whole):
        assert len(row["nearest"]) == len(row["nearest_labels"]) == 5
        assert row["nearest_labels"] == [int(uid.startswith("Beta")) for uid in row["nearest"]]
        if row["rank"] <= 5:
            assert row["nearest_labels"].index(row["label"]) + 1 == row["rank"]


def test_each_query_has_a_row_for_each_side_threat_and_attack(whole):
    keys = [(row["side"], row["threat"], row["attack"], row["index"]) for row in _rows(whole)]
    assert len(set(keys)) == len(keys) == 6 + 2 * 3 * 2 * 6


def test_a_budget_of_zero_changes_nothing(whole):
    rows = _rows(whole)
    clean = [row["rank"] for row in rows if row["side"] == "clean"]
    for side in ("queries", "gallery"):
        for name in LOSSES:
            ranks = [
                row["rank"]
                for row in rows
                if (row["side"], row["threat"], row["attack"]) == (side, "linf-0", name)
            ]
            assert ranks == clean


def test_recall_does_not_increase_with_the_budget(whole):
    table = read_summary(whole / "summary.json").retrieval
    for side in ("queries", "gallery"):
        curve = [point for point in table.curve if point.side == side]
        assert [point.threat for point in curve] == ["linf-0", "linf-2/255", "linf-8/255"]
        for number in range(2):
            recall = [point.recall[number].recall for point in curve]
            assert recall == sorted(recall, reverse=True)
        assert all(point.out_of_budget == 0 and not point.rejected for point in curve)


def test_the_worst_case_of_queries_is_that_of_each_query(whole):
    rows = [row for row in _rows(whole) if row["side"] == "queries"]
    worst = {}
    for row in rows:
        worst[row["index"]] = max(worst.get(row["index"], 0), row["rank"])
    table = read_summary(whole / "summary.json").retrieval
    last = [point for point in table.curve if point.side == "queries"][-1]
    assert last.recall[0].recall == sum(rank == 1 for rank in worst.values()) / 6


def test_an_attacked_gallery_is_one_gallery_for_all_queries():
    """The worst of two galleries, and no mixture of them by query."""
    threat = parse_threat("linf-1/255")
    attack = FeatureAttack([threat], 1, 1, 0, 1)
    results = Attacked(None, [], passes=[[0, 0]] * 2, rejected=[0, 0])
    ranks = [[1, 9, 1], [9, 1, 9]]
    (gallery,) = retrieval_curve("gallery", attack, results, ranks, [1, 1, 1], 9)
    (queries,) = retrieval_curve("queries", attack, results, ranks, [1, 1, 1], 9)
    assert gallery.recall[0].recall == 1 / 3
    assert queries.recall[0].recall == 0
    assert gallery.by_attack["push_away"] == [2 / 3, 2 / 3]


def test_a_query_that_finds_nothing_is_the_worst_case():
    attack = FeatureAttack([parse_threat("linf-1/255")], 1, 1, 0, 1)
    results = Attacked(None, [], passes=[[0, 0]] * 2, rejected=[0, 0])
    (point,) = retrieval_curve("queries", attack, results, [[0, 1], [1, 1]], [1, 1], 9)
    assert point.recall[0].recall == 0.5


def test_no_attack_is_within_every_budget():
    """An attack that brings a query nearer to its class does not help the defender."""
    attack = FeatureAttack([parse_threat("linf-1/255")], 1, 1, 0, 1)
    results = Attacked(None, [], passes=[[0, 0]] * 2, rejected=[0, 0])
    better = [[1, 1, 1], [1, 1, 2]]
    for side in ("queries", "gallery"):
        (point,) = retrieval_curve(side, attack, results, better, [3, 1, 2], 9)
        assert point.recall[0].recall == 1 / 3, side


def test_the_report_has_its_tables_and_figure(whole):
    text = (whole / "report.md").read_text()
    assert text.startswith("# ucf101, test, fold 1: retrieval with 6 queries\n")
    assert "## Retrieval" in text and "| trained | cosine |" in text
    assert "| random weights | centered |" in text
    assert "| gallery | linf-8/255 | leave_neighbors |" in text
    assert (whole / "retrieval.png").is_file()
    before = text
    rewrite_report(whole)
    assert (whole / "report.md").read_text() == before


def test_the_classifier_is_not_attacked(whole):
    summary = read_summary(whole / "summary.json")
    assert summary.curve == [] and not (whole / "results.jsonl").exists()


@pytest.mark.parametrize("batch", [1, 4])
def test_killed_it_continues_with_the_same_files(trained, whole, tmp_path, monkeypatch, batch):
    cfg, state, _ = trained
    original = retrieval_attack._attack_unit
    calls = []

    def killed(*args):
        calls.append(args)
        if len(calls) > batch:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(retrieval_attack, "_attack_unit", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(_with(cfg), state, tmp_path / "cut")
    assert list((tmp_path / "cut/features").glob("attacked_*"))
    evaluate(_with(cfg), state, tmp_path / "cut")
    for name in ("summary.json", "retrieval.jsonl", "predictions.jsonl", "report.md"):
        assert (tmp_path / "cut" / name).read_bytes() == (whole / name).read_bytes(), name
    assert not (tmp_path / "cut/features").exists()


@pytest.mark.parametrize("unit", ["clip", "video"])
def test_images_are_searched_and_attacked(trained, tmp_path, unit):
    cfg, state, _ = trained
    words = ["data.frames=1", "eval.limit=3", "eval.threats=[linf-8/255]", f"eval.unit={unit}"]
    table = evaluate(_with(cfg, *words), state, tmp_path).retrieval
    assert table.attacked == 3 and table.unit == unit and table.n == 6
    assert {point.side for point in table.curve} == {"queries", "gallery"}
    assert all(0 < point.max_measured <= 8 / 255 + 1e-6 for point in table.curve)


def test_without_threats_it_is_clean(trained, tmp_path):
    cfg, state, _ = trained
    table = evaluate(_with(cfg, "eval.threats=[]"), state, tmp_path).retrieval
    assert table.curve == [] and table.attacked == 0
    assert {row["side"] for row in _rows(tmp_path)} == {"clean"}


def test_other_options_of_the_protocol_are_another_evaluation(trained, whole):
    cfg, state, _ = trained
    with pytest.raises(UserError, match="protocol.similarity"):
        evaluate(_with(cfg, "protocol.similarity=cosine"), state, whole)


def test_the_step_of_the_attack_is_the_configured_one(trained, tmp_path, monkeypatch):
    cfg, state, _ = trained
    sizes = []
    original = retrieval_attack.pgd

    def watched(*args, **options):
        sizes.append((args[2].eps, options["step_size"]))
        return original(*args, **options)

    monkeypatch.setattr(retrieval_attack, "pgd", watched)
    cfg = _with(cfg, "eval.step=0.25", "eval.steps=1", "protocol.attacked=queries")
    summary = evaluate(cfg, state, tmp_path / "out")
    assert summary.retrieval.suite == "pgd-1x1, step 0.25 eps"
    assert {eps for eps, _ in sizes} >= {2 / 255, 8 / 255}
    assert all(size == (eps / 4 or None) for eps, size in sizes)


def _records(labels, folder="train"):
    return [Record(f"{i}.avi", f"/{folder}/{i}.avi", label) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("words", "train", "message"),
    [
        ([], [], "training videos are the gallery; give some"),
        ([], _records([1, 1]), "all gallery videos are of one class"),
        ([], [*_records([0]), *_records([1], "test")], "1 of 2 queries are files of the gallery"),
        (["eval.suite=autoattack"], _records([0, 1]), "eval.suite=autoattack: retrieval"),
        (["eval.eot=3"], _records([0, 1]), "eval.eot=3: .*; set it to 1"),
        (["eval.unit=video", "eval.crops=3"], _records([0, 1]), "eval.crops=3: .*; set it to 1"),
    ],
)
def test_it_refuses_before_decoding(words, train, message):
    cfg = config.loads("", ["protocol.name=retrieval", "eval.threats=[linf-1/255]", *words])
    with pytest.raises(UserError, match=message):
        check_retrieval(cfg, train, _records([0, 1], "test"), check_suite(cfg))


def test_links_to_a_file_of_the_gallery_are_refused(tmp_path):
    (tmp_path / "a.avi").touch()
    (tmp_path / "b.avi").symlink_to(tmp_path / "a.avi")
    train = [Record("a", str(tmp_path / "a.avi"), 0), Record("c", str(tmp_path / "c.avi"), 1)]
    cfg = config.loads("", ["protocol.name=retrieval"])
    with pytest.raises(UserError, match="first b"):
        check_retrieval(cfg, train, [Record("b", str(tmp_path / "b.avi"), 0)], check_suite(cfg))


def test_queries_of_a_class_without_gallery_videos_are_warned_of(trained, tmp_path):
    cfg, state, _ = trained
    lists = Path(tiny_ucf101(tmp_path / "data", train=2, test=1) / "ucfTrainTestlist")
    third = tiny_ucf101(tmp_path / "more", ("Gamma",), train=0, test=1)
    (lists / "classInd.txt").write_text("3 Alpha\n6 Beta\n9 Gamma\n")
    with open(lists / "testlist01.txt", "a") as file:
        file.write("Gamma/v_Gamma_g01_c01.avi\n")
    os.rename(third / "videos/Gamma", tmp_path / "data/videos/Gamma")
    cfg = _with(cfg, f"data.root={tmp_path / 'data'}", "eval.threats=[]")
    summary = evaluate(cfg, state, tmp_path / "out")
    assert "retrieval: 1 queries can find nothing, as no gallery video has their class" in (
        summary.warnings
    )
    assert _rows(tmp_path / "out")[-1]["rank"] is None


def test_the_command_runs_the_protocol(trained, tmp_path):
    _, _, top = trained
    words = ["protocol.name=retrieval", "eval.clips=1", "--output-dir", tmp_path / "out"]
    words += ["eval.threats=[linf-1/255]", "eval.steps=1", "eval.limit=2"]
    done = tool("test_net", "--checkpoint", top / "run", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_summary(tmp_path / "out/summary.json").retrieval.clips == 1
    assert "what is measured: linear probe" in done.stderr
    assert "what is attacked: features of the backbone" in done.stderr


def test_summaries_keep_their_retrieval(whole):
    summary = read_summary(whole / "summary.json")
    written = json.loads((whole / "summary.json").read_text())["retrieval"]
    assert dataclasses.asdict(summary.retrieval) == written


@pytest.mark.slow
def test_two_ranks_share_the_attacks(trained, whole, tmp_path):
    _, _, top = trained
    command = [*processes.TWO_RANKS, REPO / "tools/test_net.py", "--checkpoint", top / "run"]
    command += ["--output-dir", tmp_path / "ranks", *WORDS]
    done = processes.run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("retrieval.jsonl", "summary.json"):
        ours, theirs = (tmp_path / "ranks" / name).read_bytes(), (whole / name).read_bytes()
        assert ours == theirs, name
