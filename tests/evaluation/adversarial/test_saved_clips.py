"""Adversarial clips as data: lossless, the same after a kill, and read back pixel by pixel."""

import json
import shutil
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from tests.evaluation.helpers import CFG, SMALL, clips_of, random_model, robust_rows
from tests.helpers import counting_frames, tiny_ucf101
from vidrobust.attacks import Outcome, parse_threat, rounded
from vidrobust.config import DataConfig
from vidrobust.data import build_records, eval_dataset, source_videos, ucf101
from vidrobust.data.decoding.read_frames import open_video
from vidrobust.evaluation import Suite
from vidrobust.evaluation.adversarial.attack_row import AttackRow
from vidrobust.evaluation.adversarial.attack_settings import AttackSettings
from vidrobust.evaluation.adversarial.rows import carry_breaks
from vidrobust.evaluation.adversarial.saved_clips import (
    ffv1,
    finish_saving,
    is_kept,
    listed_names,
    pixel_file,
    png,
    stem_of,
)
from vidrobust.utils.own_files import EVALUATION_FILES, delete_files

ROWS = sys.modules["vidrobust.evaluation.adversarial.rows"]
THREATS = [parse_threat(name) for name in ("linf-1/255", "linf-16/255", "flicker-linf-8/255")]
saved_rows = partial(robust_rows, indices=range(6), threats=THREATS)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return ucf101(tiny_ucf101(tmp_path_factory.mktemp("saved"), train=1, test=3), "test", 1)[0]


@pytest.fixture(scope="module")
def saved(records, tmp_path_factory):
    """Return the folder of an evaluation that saves all clips, its rows and its model."""
    out = tmp_path_factory.mktemp("saved") / "all"
    net = random_model(4)
    return out, saved_rows(records, out, net, save="all"), net


def _files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- Files ---


@pytest.mark.parametrize("shape", [(2, 16, 16), (7, 17, 23), (33, 15, 9), (1, 8, 31)])
def test_video_files_hold_every_pixel(tmp_path, shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    path = tmp_path / "clip.mkv"
    path.write_bytes(ffv1(noise))
    with open_video(path) as video:
        frames = np.stack(list(video.frames(np.arange(video.num_frames))))
    assert np.array_equal(frames, noise)


def test_equal_frames_give_equal_files():
    frames = counting_frames(3, size=20)
    assert ffv1(frames) == ffv1(frames.copy())
    assert png(frames[0]) == png(frames[0].copy())


@pytest.mark.parametrize(("frames", "size"), [(1, 17), (3, 17), (4, 32)])
def test_a_list_reads_back_every_pixel(records, tmp_path, frames, size):
    cfg = DataConfig(frames=frames, stride=2, short_side=size + 4, size=size, workers=0)
    net = nn.Sequential(nn.Flatten(1), nn.Linear(3 * frames * size**2, 2)).eval()
    robust_rows(records, tmp_path, net.requires_grad_(False), cfg=cfg, save="all")
    folder = tmp_path / "adversarial/linf-1_255"
    options = {"root": str(folder), "frames": frames, "stride": 1}
    sizes = {"short_side": size, "size": size, "workers": 0}
    listed = DataConfig(name="list", **options, **sizes)
    read, classes = build_records(listed, "test")
    assert classes == ["0", "1"]
    assert {record.path.rpartition(".")[2] for record in read} == {"png" if frames == 1 else "mkv"}
    dataset = eval_dataset(listed, read, 1)
    for index in range(4):
        with np.load(folder / f"{index:06d}.npz") as arrays:
            clean = torch.from_numpy(arrays["clip"]).float()[None] / 255
            adversarial = torch.from_numpy(arrays["adversarial"])[None]
        assert torch.equal(clips_of(dataset, index), rounded(adversarial, clean))
        assert torch.equal(clean, clips_of(eval_dataset(cfg, records, 1), index))


# --- What is saved ---


def test_every_row_has_the_clips_that_its_predictions_belong_to(saved):
    out, rows, net = saved
    assert {row.killed_by for row in rows} >= {"pgd", None}
    for row in rows:
        stem = stem_of(out, row.threat, row.index)
        with np.load(stem.with_suffix(".npz"), allow_pickle=False) as arrays:
            content = dict(arrays)
        assert content["adversarial"].dtype == np.float32
        named = {key: content[key].item() for key in ("uid", "label", "clean_pred", "adv_pred")}
        assert named == {key: getattr(row, key) for key in named}
        assert (str(content["threat"]), str(content["killed_by"])) == (
            row.threat,
            row.killed_by or "",
        )
        assert int(net(torch.from_numpy(content["adversarial"])[None]).argmax()) == row.adv_pred
        with open_video(pixel_file(stem)) as video:
            frames = np.stack(list(video.frames(np.arange(2))))
        x = torch.from_numpy(frames).permute(3, 0, 1, 2).float()[None] / 255
        assert int(net(x).argmax()) == row.uint8_pred


def test_floats_are_those_of_the_attack(records, tmp_path, monkeypatch):
    outcomes = []

    def recorded(*args, **options):
        outcomes.append(worst_case(*args, **options))
        return outcomes[-1]

    worst_case = ROWS.worst_case
    monkeypatch.setattr(ROWS, "worst_case", recorded)
    rows = saved_rows(records, tmp_path, random_model(4), threats=SMALL, save="all", batch_size=1)
    attacked = [row for row in rows if row.killed_by != "clean"]
    assert len(attacked) == len(outcomes) > 1
    for row, outcome in zip(attacked, outcomes, strict=True):
        with np.load(stem_of(tmp_path, row.threat, row.index).with_suffix(".npz")) as arrays:
            assert np.array_equal(arrays["adversarial"], outcome.x_adv[0].numpy())


def test_a_clip_that_a_smaller_budget_broke_is_kept_at_larger_ones(records, tmp_path):
    rows = saved_rows(records, tmp_path, random_model(4), save="all")
    broken = [r.index for r in rows if (r.threat, r.killed_by) == ("linf-1/255", "pgd")]
    assert broken
    for index in broken:
        clips = []
        for threat in ("linf-1/255", "linf-16/255"):
            with np.load(stem_of(tmp_path, threat, index).with_suffix(".npz")) as arrays:
                clips.append(arrays["adversarial"])
        assert np.array_equal(*clips)


def test_only_broken_clips_are_saved_if_asked(saved, records, tmp_path):
    whole, rows, net = saved
    assert saved_rows(records, tmp_path, net, save="broken") == rows
    kept = [row for row in rows if "pgd" in (row.killed_by, row.uint8_killed_by)]
    assert 0 < len(kept) < len(rows)
    stems = [stem_of(tmp_path, row.threat, row.index) for row in kept]
    files = sorted(path for path in tmp_path.rglob("[0-9]*.[mn]*"))
    assert files == sorted(s.with_suffix(e) for s in stems for e in (".mkv", ".npz"))
    for path in files:
        assert path.read_bytes() == (whole / path.relative_to(tmp_path)).read_bytes()
    lists = [path.read_text().splitlines() for path in tmp_path.rglob("test.txt")]
    assert sum(map(len, lists)) == len(kept)


def test_nothing_is_saved_by_default(records, tmp_path):
    robust_rows(records, tmp_path, random_model(4))
    assert not (tmp_path / "adversarial").exists()


def test_a_video_that_does_not_decode_has_a_row_and_no_clip(tmp_path):
    records, _ = ucf101(tiny_ucf101(tmp_path / "data", train=1, test=2), "test", 1)
    open(records[1].path, "w").close()
    robust_rows(records, tmp_path / "out", random_model(4), save="all")
    folder = tmp_path / "out/adversarial/linf-1_255"
    lines = [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]
    assert [line["file"] is None for line in lines] == [False, True, False, False]
    assert "is empty" in lines[1]["error"]
    assert not list(folder.glob("000001.*"))
    assert len((folder / "test.txt").read_text().splitlines()) == 3


def test_names_of_classes_that_a_list_cannot_hold_are_changed(records, tmp_path):
    names = [" run\nfast,", "", "run\\nfast", "<b>\u202e", "run", "run"]
    listed = listed_names(names)
    assert len(set(listed)) == len(names) and listed[4] == "run"
    robust_rows(records, tmp_path, random_model(4), save="all", classes=names)
    folder = tmp_path / "adversarial/linf-1_255"
    cfg = DataConfig(name="list", root=str(folder), frames=2, stride=1, workers=0)
    assert build_records(cfg, "test")[1] == listed


def test_source_frames_are_saved_with_what_views_show(records, tmp_path):
    cfg = replace(CFG, short_side=21)
    dataset = source_videos(cfg, records, 2)
    rows = robust_rows(records, tmp_path, random_model(4), dataset=dataset, save="all")
    for row in rows:
        stem = stem_of(tmp_path, row.threat, row.index)
        with np.load(stem.with_suffix(".npz")) as arrays:
            assert np.array_equal(arrays["shown"], dataset[row.index].clips)
            assert np.array_equal(arrays["clip"].transpose(1, 2, 3, 0), dataset[row.index].frames)
            clean = torch.from_numpy(arrays["clip"]).float() / 255
            pixels = rounded(torch.from_numpy(arrays["adversarial"]), clean) * 255
        with open_video(pixel_file(stem)) as video:
            frames = np.stack(list(video.frames(np.arange(video.num_frames))))
        assert np.array_equal(frames, pixels.round().byte().permute(1, 2, 3, 0).numpy())


# --- Kills ---


@pytest.mark.parametrize("kept", [0, 1, 7, 17])
def test_killed_at_any_row_it_saves_the_same_bytes(saved, records, tmp_path, kept):
    whole, _, net = saved
    shutil.copytree(whole, tmp_path / "cut")
    lines = (whole / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut/results.jsonl").write_text("".join(lines[:kept]) + lines[kept][:20])
    shutil.rmtree(tmp_path / "cut/adversarial/linf-16_255")
    (tmp_path / "cut/adversarial/saved.json").unlink()
    saved_rows(records, tmp_path / "cut", net, save="all")
    assert _files(tmp_path / "cut/adversarial") == _files(whole / "adversarial")
    assert (tmp_path / "cut/results.jsonl").read_text() == "".join(lines)


def test_only_batches_with_a_missing_clip_are_attacked_again(saved, records, tmp_path, monkeypatch):
    whole, rows, net = saved
    shutil.copytree(whole, tmp_path / "cut")
    stem_of(tmp_path / "cut", "linf-16/255", 3).with_suffix(".npz").unlink()
    seen = []
    attack_unit = ROWS._attack_unit

    def counted(unit, *args):
        seen.append(unit.index)
        return attack_unit(unit, *args)

    monkeypatch.setattr(ROWS, "_attack_unit", counted)
    assert saved_rows(records, tmp_path / "cut", net, save="all") == rows
    assert seen == [[2, 3]]
    assert _files(tmp_path / "cut/adversarial") == _files(whole / "adversarial")


def test_a_budget_added_later_gets_the_clip_that_a_smaller_one_broke(
    saved, records, tmp_path, monkeypatch
):
    """The attack on the larger budget fails: rows and clips are those of the smaller one."""
    net = random_model(4)
    small, large = THREATS[:2]
    saved_rows(records, tmp_path, net, threats=[small], save="all")

    def fails(predict, x, y, threat, steps, **options):
        return Outcome(x.clone(), x.clone(), [None] * len(x), [None] * len(x))

    monkeypatch.setattr(ROWS, "worst_case", fails)
    rows = saved_rows(records, tmp_path, net, threats=[small, large], save="all")
    by_threat = {(row.index, row.threat): row for row in rows}
    broken = [i for i in range(6) if by_threat[i, str(small)].killed_by == "pgd"]
    assert broken
    for index in broken:
        assert by_threat[index, str(large)].killed_by == "pgd"
        before, after = (stem_of(tmp_path, str(threat), index) for threat in (small, large))
        assert pixel_file(before).read_bytes() == pixel_file(after).read_bytes()
        with (
            np.load(before.with_suffix(".npz")) as one,
            np.load(after.with_suffix(".npz")) as other,
        ):
            assert np.array_equal(one["adversarial"], other["adversarial"])
            assert str(other["threat"]) == str(large)


def test_a_clip_that_only_rounding_breaks_has_floats_at_larger_budgets(tmp_path):
    """At 1/255 rounding breaks it; nothing breaks it at 2/255 and 4/255, so nothing was saved."""
    threats = [parse_threat(f"linf-{size}/255") for size in (1, 2, 4)]
    row = AttackRow(0, "v", 0, 0, "linf-1/255", 1 / 255, 0, True, None, 1, "pgd")
    others = [
        replace(row, threat=str(threat), eps=threat.eps, uint8_pred=0, uint8_killed_by=None)
        for threat in threats[1:]
    ]
    stem = stem_of(tmp_path, row.threat, 0)
    stem.parent.mkdir(parents=True)
    stem.with_suffix(".mkv").write_bytes(ffv1(counting_frames(2, size=16)))
    arrays = {"adversarial": np.full(3, 0.5, np.float32), "adv_pred": 0, "killed_by": ""}
    np.savez(stem.with_suffix(".npz"), threat=row.threat, **arrays)
    measured = [row, *others]
    carried = carry_breaks(measured, [threats])
    assert [each.uint8_killed_by for each in carried] == ["pgd"] * 3
    attack = AttackSettings(threats, Suite("pgd"), seed=0, save="broken", classes=["a"])
    about = {"protocol": {"unit": "clip", "frames": 2, "size": 16}}
    finish_saving(tmp_path, measured, carried, attack, about)
    for threat in map(str, threats):
        copy = stem_of(tmp_path, threat, 0)
        assert copy.with_suffix(".mkv").read_bytes() == stem.with_suffix(".mkv").read_bytes()
        with np.load(copy.with_suffix(".npz"), allow_pickle=False) as content:
            assert str(content["threat"]) == threat and str(content["killed_by"]) == ""
            assert np.array_equal(content["adversarial"], arrays["adversarial"])


def test_overwrite_deletes_all_of_it_and_follows_no_link(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "out")
    (tmp_path / "elsewhere/linf-1_255").mkdir(parents=True)
    other = tmp_path / "elsewhere/linf-1_255/000000.npz"
    other.touch()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/adversarial").symlink_to(tmp_path / "elsewhere")
    for folder in ("out", "linked"):
        delete_files(tmp_path / folder, EVALUATION_FILES)
    assert not list((tmp_path / "out").iterdir())
    assert other.is_file()


def test_rows_without_an_attack_are_not_broken():
    row = AttackRow(0, "v", 0, 0, "linf-1/255", 1 / 255, 0, True, None, 0, None)
    assert is_kept(row, "all") and not is_kept(row, "broken")
    assert not is_kept(replace(row, killed_by="clean", uint8_killed_by="clean"), "broken")
    assert is_kept(replace(row, uint8_killed_by="pgd"), "broken")
    assert not is_kept(replace(row, error="damaged"), "all")
