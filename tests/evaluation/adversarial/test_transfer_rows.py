"""A model measured on the adversarial clips of others."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tests.evaluation.helpers import CFG, CPU, clips_of, random_model, robust_rows
from tests.helpers import tiny_ucf101
from vidrobust import config
from vidrobust.attacks import parse_threat
from vidrobust.data import eval_dataset, source_videos, ucf101
from vidrobust.evaluation import MeasureSettings, wilson
from vidrobust.evaluation.adversarial.saved_clips import stem_of
from vidrobust.evaluation.adversarial.transfer_rows import (
    check_transfer,
    evaluate_transfer,
    read_source,
    unlike_protocol,
)
from vidrobust.utils.errors import UserError

THREATS = [parse_threat(name) for name in ("linf-1/255", "linf-16/255")]
saved_rows = partial(robust_rows, indices=range(6), threats=THREATS, save="all", batch_size=4)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return ucf101(tiny_ucf101(tmp_path_factory.mktemp("data"), train=1, test=3), "test", 1)[0]


@pytest.fixture(scope="module")
def saved(records, tmp_path_factory):
    """Return the folder of an evaluation that saves all clips, its rows and its model."""
    out = tmp_path_factory.mktemp("saved") / "all"
    net = random_model(4)
    return out, saved_rows(records, out, net), net


def _transfer(out, net, *folders, size=16, crops=1):
    out.mkdir(exist_ok=True)
    settings = MeasureSettings(net, out, 4, workers=0, device=CPU, identity="model")
    return evaluate_transfer(settings, [read_source(str(f)) for f in folders], size, crops)[0]


def _config(*words):
    defaults = {"data.frames": "2", "data.size": "16", "eval.threats": "[linf-1/255]"}
    options = defaults | dict(word.split("=", 1) for word in words)
    return config.loads("", [f"{key}={value}" for key, value in options.items()])


def _relative(net, seed, weight):
    """Return a model between a model and that of another seed: some attacks transfer to it."""
    other = random_model(seed)
    with torch.no_grad():
        for ours, theirs in zip(other.parameters(), net.parameters(), strict=True):
            ours.lerp_(theirs, weight)
    return other


def test_success_is_counted_as_a_loop_over_clips_does(saved, records, tmp_path):
    folder, rows, attacked = saved
    net = _relative(attacked, 9, 0.7)
    results = _transfer(tmp_path, net, folder)
    dataset = eval_dataset(CFG, records, 1)
    for result, threat in zip(results, map(str, THREATS), strict=True):
        right = clean_right = broken = 0
        for row in (row for row in rows if row.threat == threat):
            with np.load(stem_of(folder, threat, row.index).with_suffix(".npz")) as arrays:
                pred = int(net(torch.from_numpy(arrays["adversarial"])[None]).argmax())
            is_clean_right = int(net(clips_of(dataset, row.index)).argmax()) == row.label
            right += pred == row.label
            # the clip of a video that the attacked model gets wrong is its clean clip
            attacked = row.clean_right
            clean_right += is_clean_right and attacked
            broken += is_clean_right and attacked and pred != row.label
        assert (result.threat, result.n, result.source) == (threat, 6, str(folder))
        assert (result.acc, result.clean_right) == (right / 6, clean_right)
        assert result.success == broken / clean_right
        assert result.ci95 == list(wilson(right, 6))
        assert result.success_ci95 == list(wilson(broken, clean_right))
    assert [result.success for result in results] == [0.2, 0.8], "neither none nor all"


def test_a_models_own_clips_give_its_own_rows(saved, tmp_path):
    folder, rows, net = saved
    for result in _transfer(tmp_path, net, folder):
        ours = [row for row in rows if row.threat == result.threat]
        assert result.acc == sum(row.robust for row in ours) / 6
        assert result.clean_right == sum(row.clean_right for row in ours)
    lines = [json.loads(line) for line in (tmp_path / "transfer.jsonl").read_text().splitlines()]
    found = {(line["index"], line["threat"]): (line["clean_pred"], line["pred"]) for line in lines}
    assert found == {(r.index, r.threat): (r.clean_pred, r.adv_pred) for r in rows}


def test_source_frames_give_its_own_rows_through_all_views(records, tmp_path):
    dataset = source_videos(replace(CFG, short_side=21), records, 2)
    net = random_model(4)
    rows = saved_rows(records, tmp_path / "one", net, dataset=dataset, crops=3)
    results = _transfer(tmp_path / "other", net, tmp_path / "one", crops=3)
    for result in results:
        ours = [row.robust for row in rows if row.threat == result.threat]
        assert result.acc == sum(ours) / 6


def test_a_video_that_does_not_decode_counts_as_wrong(tmp_path):
    records, _ = ucf101(tiny_ucf101(tmp_path / "data", train=1, test=2), "test", 1)
    open(records[1].path, "w").close()
    net = random_model(4)
    rows = robust_rows(records, tmp_path / "one", net, save="all")
    (result,) = _transfer(tmp_path / "other", net, tmp_path / "one")
    assert result.n == 4
    assert result.acc == sum(row.robust for row in rows) / 4


@pytest.mark.parametrize("kept", [0, 3, 11])
def test_killed_at_any_row_it_continues_to_the_same_bytes(saved, tmp_path, kept):
    folder, _, _ = saved
    net = random_model(9)
    results = _transfer(tmp_path / "whole", net, folder)
    lines = (tmp_path / "whole/transfer.jsonl").read_text().splitlines(keepends=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut/transfer.jsonl").write_text("".join(lines[:kept]) + lines[kept][:20])
    assert _transfer(tmp_path / "cut", net, folder) == results
    assert (tmp_path / "cut/transfer.jsonl").read_text() == "".join(lines)


def test_a_random_model_has_the_same_rows_wherever_it_was_killed(saved, tmp_path):
    folder, _, _ = saved

    def coin(x):
        return torch.randn(len(x), 2)

    before = torch.get_rng_state()
    results = _transfer(tmp_path / "whole", coin, folder)
    assert torch.equal(torch.get_rng_state(), before)
    lines = (tmp_path / "whole/transfer.jsonl").read_text().splitlines(keepends=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    # the second batch is measured anew, at another state of the generator
    (tmp_path / "cut/transfer.jsonl").write_text("".join(lines[:8]))
    torch.manual_seed(99)
    assert _transfer(tmp_path / "cut", coin, folder) == results
    assert (tmp_path / "cut/transfer.jsonl").read_text() == "".join(lines)
    settings = MeasureSettings(coin, tmp_path / "other", 4, workers=0, device=CPU, identity="model")
    (tmp_path / "other").mkdir()
    evaluate_transfer(settings, [read_source(str(folder))], 16, seed=1)
    assert (tmp_path / "other/transfer.jsonl").read_text() != "".join(lines)


def test_nan_is_wrong_and_named(saved, tmp_path):
    def broken(x):
        logits = random_model(9)(x)
        logits[0] = float("nan")
        return logits

    settings = MeasureSettings(broken, tmp_path, 6, workers=0, device=CPU, identity="model")
    results, warnings = evaluate_transfer(settings, [read_source(str(saved[0]))], 16)
    assert len(warnings) == 1 and "1 of 6 videos count as wrong" in warnings[0]
    assert all(result.n == 6 for result in results)


# --- Refusals ---


def _refusal(saved, records, tmp_path, spoil, *words):
    """Return why a spoilt copy of the saved clips is refused."""
    shutil.copytree(saved[0], tmp_path / "spoilt")
    spoil(tmp_path / "spoilt/adversarial")
    cfg = _config(f"eval.transfer=[{tmp_path / 'spoilt'}]", *words)
    with pytest.raises(UserError) as error:
        check_transfer(cfg, records)
    return str(error.value)


def _edit(key, value):
    """Return a function that changes an entry of saved.json."""

    def edit(folder):
        path = folder / "saved.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return edit


@pytest.mark.parametrize(
    ("spoil", "words", "message"),
    [
        (shutil.rmtree, [], "has no saved adversarial clips; evaluate that model again"),
        (_edit("save", "broken"), [], "only the clips that its attack broke (eval.save=broken)"),
        (_edit("threats", []), [], "saved.json: damaged"),
        (_edit("videos", "0" * 16), [], "attacked other test videos"),
        (lambda f: shutil.rmtree(f / "linf-16_255"), [], "has no clips under linf-16/255"),
        (lambda f: (f / "linf-16_255/000002.npz").unlink(), [], "000002.npz is missing"),
        (lambda f: None, ["data.frames=4"], "have data.frames=2, and this model has data.frames=4"),
        (lambda f: None, ["data.size=20"], "have data.size=16, and this model has data.size=20"),
        (lambda f: None, ["eval.unit=video"], "have eval.unit=clip"),
    ],
)
def test_clips_that_do_not_fit_are_refused(saved, records, tmp_path, spoil, words, message):
    assert message in _refusal(saved, records, tmp_path, spoil, *words)


def test_an_evaluation_named_twice_is_refused(saved, records):
    cfg = _config(f"eval.transfer=[{saved[0]},{saved[0]}/../all]")
    with pytest.raises(UserError, match="is named twice, or is this evaluation itself"):
        check_transfer(cfg, records)
    with pytest.raises(UserError, match="is named twice, or is this evaluation itself"):
        check_transfer(_config(f"eval.transfer=[{saved[0]}]"), records, saved[0])


def test_a_run_is_refused_with_the_names_of_its_evaluations(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "run/eval/pgd")
    with pytest.raises(UserError, match="is a run; name one of its evaluations: .*run/eval/pgd"):
        read_source(str(tmp_path / "run"))


@pytest.mark.parametrize("words", [["eval.threats=[]"], ["protocol.name=retrieval"]])
def test_saving_without_an_attack_on_a_classifier_is_refused(records, words):
    with pytest.raises(UserError, match="eval.save=all: .* no adversarial clips of a classifier"):
        check_transfer(_config("eval.save=all", *words), records)


def test_a_damaged_clip_is_refused_by_name(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "cut")
    file = tmp_path / "cut/adversarial/linf-1_255/000001.npz"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"000001.npz: damaged"):
        _transfer(tmp_path / "out", random_model(9), tmp_path / "cut")


def test_clips_cut_otherwise_are_warned_of(saved):
    source = read_source(str(saved[0]))
    assert unlike_protocol(source, source.protocol) == []
    (line,) = unlike_protocol(source, {**source.protocol, "stride": 5})
    assert "were cut otherwise than this model's (stride 2, here 5)" in line
