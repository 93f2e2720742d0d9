import base64
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import REPO, tiny, tiny_ucf101
from tests.pages import in_browser, needs_chromium, on_phone, outside, parsed
from vidrobust import config
from vidrobust.attacks import parse_threat
from vidrobust.data import ClipSpec, Corrupted, Failure
from vidrobust.evaluation.adversarial.attack_row import AttackRow
from vidrobust.evaluation.adversarial.broken_clips import (
    BrokenClip,
    save_broken_clips,
    select_broken_clips,
)
from vidrobust.evaluation.adversarial.curve import robust_curve
from vidrobust.evaluation.adversarial.fingerprint import (
    change_maps,
    change_per_frame,
    fingerprint,
    read_map,
)
from vidrobust.evaluation.adversarial.transfer_rows import Transfer
from vidrobust.evaluation.loading import build_lists
from vidrobust.evaluation.natural.corrupted_pictures import save_pictures, shown_video
from vidrobust.evaluation.natural.corruption_summary import corruption_table
from vidrobust.evaluation.report import html_report
from vidrobust.evaluation.report.baseline import (
    Baseline,
    check_baseline,
    read_baseline,
    remember_baseline,
    remembered_baseline,
)
from vidrobust.evaluation.report.clip_player import shown_clips
from vidrobust.evaluation.report.fingerprint_charts import fingerprints
from vidrobust.evaluation.report.html_report import write_html
from vidrobust.evaluation.report.markdown import _done
from vidrobust.evaluation.report.page import LARGEST
from vidrobust.evaluation.report.svg_charts import Line, Point, legend, line_chart
from vidrobust.evaluation.report.verdict import in_words, verdict
from vidrobust.evaluation.representation.knn_and_probe import Accuracy
from vidrobust.evaluation.summary import Summary, write_summary
from vidrobust.utils.errors import UserError

NASTY = (
    "<script>alert(1)</script>",
    "a\"b'c",
    "Ünïcødé 跳跃 🏃",
    "x\u202ey",
    "&amp;",
    "{{ 7*7 }}",
)
THREATS = ["linf-0", "linf-1/255", "linf-2/255", "flicker-linf-8/255"]


def _summary(classes, n, **others):
    half = Accuracy(0.5, [0.4, 0.6], n)
    values = {
        "n": n,
        "dataset": "list",
        "split": "test",
        "branch": "clean",
        "views": {"attack": "1x1", "representation": "3x1"},
        "chance": 1 / len(classes),
        "representation": {"trained_probe": half, "random_probe": Accuracy(0.3, [0.2, 0.4], n)},
        "failed": [],
        "geometry": None,
        "curve": [],
        "warnings": [],
        "corruption": None,
        "manifest_sha": "m",
    }
    return Summary(**values | others)


def _rows(classes, n, frames=4, seed=0):
    """Return rows of n videos under THREATS: the class is right, and each budget breaks some."""
    rng = np.random.default_rng(seed)
    rows = []
    change = torch.rand(1, 3, frames, 20, 20, generator=torch.Generator().manual_seed(seed))
    by_frame, by_place = change_per_frame(change)[0], change_maps(change)[0]
    for index in range(n):
        label = index % len(classes)
        other = (label + 1) % len(classes)
        clean = other if rng.random() < 0.2 else label
        breaks = rng.integers(1, 5)  # number of the first threat that breaks it
        for number, threat in enumerate(THREATS):
            broken = clean != label or number >= breaks
            killed = "clean" if clean != label else "pgd" if broken else None
            rows.append(
                AttackRow(
                    index=index,
                    uid=f"{classes[label]}/v{index}.avi",
                    label=label,
                    clean_pred=clean,
                    threat=threat,
                    eps=parse_threat(threat).eps,
                    adv_pred=other if broken else label,
                    robust=not broken,
                    killed_by=killed,
                    uint8_pred=other if broken else label,
                    uint8_killed_by=killed,
                    measured=0.001,
                    in_budget=True,
                    change_frames=by_frame,
                    change_map=by_place,
                )
            )
    return rows


def _page(out, classes, n=20, clips=(), **others):
    """Write report.html of rows and clips, and return its text."""
    rows = _rows(classes, n)
    with open(out / "results.jsonl", "w") as file:
        file.writelines(json.dumps(row.to_json()) + "\n" for row in rows)
    curve = robust_curve(rows, [parse_threat(name) for name in THREATS])
    clean = sum(row.clean_right for row in rows[:: len(THREATS)]) / n
    values = {"curve": curve, "clean_acc": clean, "threats": THREATS, "suite": "pgd-20x1"}
    summary = _summary(classes, n, attacks=["pgd"], **values | others)
    save_broken_clips(out / "clips", clips, 100)
    write_html(out, summary, classes, {})
    return (out / "report.html").read_text(encoding="utf-8")


def _clip(index, frames=4, size=16, uid="v", label=0, seed=0, device="cpu"):
    """Return a broken clip of random pixels, of a linear model with three classes."""
    rng = np.random.default_rng(seed + index)
    clip = rng.integers(0, 256, (3, frames, size, size), dtype=np.uint8)
    sign = rng.choice([-1, 1], clip.shape)
    content = {
        "clip": clip,
        "adversarial": (clip / 255 + sign / 255).clip(0, 1).astype(np.float32),
        "uid": uid,
        "label": label,
        "clean_pred": label,
        "adv_pred": 1 - label % 2,
        "threat": "linf-1/255",
        "killed_by": "pgd",
        "fps": 12.0,
    }
    return BrokenClip("linf", index, content, _mean_logits, torch.device(device))


def _mean_logits(x):
    mean = x.mean((1, 2, 3, 4))
    return torch.stack([mean, 1 - mean, -mean], 1)


def _pixels(address):
    """Return the pixels of a sprite, (H, W, 3)."""
    data = base64.b64decode(address.partition("base64,")[2])
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("frames", [1, 5, 64])
def test_sprites_hold_every_pixel_of_clip_and_adversarial_clip(frames, tmp_path):
    broken = _clip(3, frames=frames, size=15)
    text = _page(tmp_path, ["a", "b"], clips=[broken])
    sources = re.findall(r'<img class="sprite" src="([^"]+)"', text)
    columns = int(re.search(r'data-columns="(\d+)"', text)[1])
    twin = np.round(255 * broken.content["adversarial"]).astype(np.uint8)
    for source, clip in zip(sources, (broken.content["clip"], twin), strict=True):
        sheet = _pixels(source)
        for t in range(frames):
            top, left = t // columns * 15, t % columns * 15
            cell = sheet[top : top + 15, left : left + 15]
            assert (cell == clip[:, t].transpose(1, 2, 0)).all()
    assert f'data-frames="{frames}"' in text


def test_names_are_shown_and_never_read_as_markup(tmp_path):
    classes = list(NASTY)
    clips = [_clip(i, uid=name, label=0) for i, name in enumerate(NASTY)]
    text = _page(tmp_path, classes, clips=clips, warnings=list(NASTY), dataset=NASTY[0])
    tree = parsed(text)
    shown = "".join(tree.itertext())
    # one script of our own; what the names would add is text
    scripts = [e.get("type") for e in tree.iter("script")]
    assert scripts.count(None) == 1 and set(scripts) <= {None, "application/json"}
    assert not [e for e in tree.iter() if any(str(k).startswith("on") for k in e.attrib)]
    for name in ("<script>alert(1)</script>", "a\"b'c", "跳跃", "🏃", "&amp;", "{{ 7*7 }}"):
        assert name in shown
    assert "\u202e" not in text and "\\u202e" in shown
    assert outside(text) == []


@pytest.mark.parametrize("count", [1, 24, 400])
def test_tables_of_classes_stay_readable(count, tmp_path):
    classes = [f"class number {i}" for i in range(count)]
    text = _page(tmp_path, classes, n=2 * count)
    tree = parsed(text)
    tables = {table.get("id"): table for table in tree.iter("table")}
    assert len(list(tables["class-table"].iter("tr"))) == count + 1
    matrices = [table for table in tree.iter("table") if table.get("class") == "matrix"]
    assert len(matrices) == (2 if count <= 24 else 0)
    # of many classes, pairs take the place of a matrix of 160,000 cells
    assert ("pair-table" in tables) == (count > 24)
    assert len(text) < 400_000


def test_the_file_stays_within_its_budget_whatever_was_measured(tmp_path):
    clips = [_clip(0, frames=64, size=112)]
    clips += [_clip(i, frames=2, size=112, label=i % 2) for i in range(1, 24)]
    text = _page(tmp_path, [f"c{i}" for i in range(101)], n=5000, clips=clips)
    assert len(text.encode()) < LARGEST
    shown = text.count('class="clip"')
    assert 5 < shown < 24
    # the clip of 64 frames, 5 MB of noise, is shown with fewer, which the page says
    assert re.search(r"\d+ of 64 frames shown", text)
    assert f"{24 - shown} more in clips/ did not fit" in text


def test_many_small_clips_do_not_exceed_the_budget(tmp_path, monkeypatch):
    """Their text is larger than their pictures."""
    clips = [_clip(i, size=4, uid="u" * 400, label=i % 2) for i in range(60)]
    monkeypatch.setattr(html_report, "LARGEST", 120_000)
    monkeypatch.setattr(html_report, "_CLIPS", 110_000)
    text = _page(tmp_path, ["a", "b"], clips=clips)
    shown = text.count('class="clip"')
    assert len(text.encode()) <= 120_000 and 0 < shown < 60
    assert f"{60 - shown} more in clips/ did not fit" in text


def test_a_prediction_that_rounding_changes_is_shown(tmp_path):
    clip = _clip(0)
    # between two pixel values, and nearer to the clean one
    nudged = (clip.content["clip"] / 255 + 0.3 / 255).astype(np.float32)
    clip.content["adversarial"] = nudged.clip(0, 1)
    edge = float(nudged.mean()) - 1e-4  # the mean of the rounded clip lies below it

    def predict(x):
        above = x.mean((1, 2, 3, 4)) - edge
        return torch.stack([-above, above, torch.full_like(above, -9)], 1)

    steps = replace(clip, predict=predict)
    text = _page(tmp_path, ["a", "b"], clips=[steps])
    assert "adversarial: b; rounded, as shown: a" in text
    other = tmp_path / "other"
    other.mkdir()
    assert "rounded, as shown" not in _page(other, ["a", "b"], clips=[_clip(0, label=0)])


def test_filters_have_the_very_names_of_classes(tmp_path):
    names = ["a  b", " c", "d"]
    tree = parsed(_page(tmp_path, names, clips=[_clip(i, label=i) for i in range(2)]))
    values = {option.get("value") for option in tree.iter("option")}
    assert {clip.get("data-true") for clip in tree.iter("article")} == {"a  b", " c"}
    assert {"a  b", " c", ""} <= values and None not in values


def test_each_kind_of_threat_has_a_clip(tmp_path):
    kinds = ["linf", "border2-linf", "flicker-linf", "l2", "patch8-linf"]
    for number, kind in enumerate(kinds):
        clips = [replace(_clip(10 * number + i, frames=8, size=64), kind=kind) for i in (0, 1)]
        save_broken_clips(tmp_path, clips, 2)
    paths = sorted(tmp_path.glob("*.npz"))
    one = shown_clips(paths[:1], ["a", "b"], kinds, 10**9)[0].size
    clips = shown_clips(paths, ["a", "b"], kinds, 4 * one)
    assert len(clips) == 5  # one of each, in the order of the kinds, and none whole
    assert sum(clip.size for clip in clips) <= 4 * one
    assert {len(clip.frames) for clip in clips} <= {5, 6}


def test_cells_lead_to_clips_that_are_kept_and_to_no_others(tmp_path):
    text = _page(tmp_path, ["a", "b", "c"], n=60, clips=[_clip(0)])
    buttons = [b for b in parsed(text).iter("button") if "to-clips" in b.get("class", "")]
    # one in the matrix under the attack, and the class itself
    pairs = {(b.get("data-true"), b.get("data-taken")) for b in buttons}
    assert len(buttons) == 2 and pairs == {("a", "b"), ("a", "")}


def test_budgets_of_different_orders_have_charts_of_their_own(tmp_path):
    points = robust_curve(_rows(["a"], 5), [parse_threat(name) for name in THREATS])
    patch = replace(points[-1], threat="patch8-linf-1", kind="patch8-linf", eps=1.0)
    text = _page(tmp_path, ["a"], n=5, curve=[*points, patch])
    # linf-2/255 and flicker-linf-8/255 on one axis, the patch on another
    assert text.count("<figcaption><ul") == 2


def test_what_the_page_counts_is_what_the_rows_say(tmp_path):
    text = _page(tmp_path, ["a", "b", "c"], n=30)
    rows = _rows(["a", "b", "c"], 30)
    for label, name in enumerate("abc"):
        threat = re.search(r"under (\S+)</button>", text)[1]
        of_class = [r for r in rows if r.label == label and r.threat == threat]
        right = sum(r.clean_pred == label for r in of_class) / len(of_class)
        kept = sum(r.robust for r in of_class) / len(of_class)
        cells = f">{name}</td>\\s*<td[^>]*>10</td>\\s*<td[^>]*>{100 * right:.1f} %</td>"
        cells += f"\\s*<td[^>]*>{100 * kept:.1f} %</td>"
        assert re.search(cells, text)
    n_first = sum(not r.robust and r.killed_by != "clean" for r in rows if r.threat == "linf-1/255")
    assert f"{n_first} of 30 videos break first at linf-1/255" in text


def test_the_bibtex_of_the_page_is_what_latex_reads(tmp_path):
    tree = parsed(_page(tmp_path, ["a", "b"], n=6))
    shown = next(each for each in tree.iter("pre") if each.get("id") == "bibtex")
    # with its line ends, which hostile names may not have
    assert shown.text.startswith("@") and "\\n" not in shown.text
    assert shown.text.count("\n}\n\n@") >= 1 and shown.text.count("@") >= 2


def test_an_evaluation_on_clips_of_others_says_what_it_found(tmp_path):
    found = Transfer(
        40, 0.25, [0.1, 0.4], 30, 0.5, [0.3, 0.7], "two/eval/x", "step 9", "linf-1/255"
    )
    summary = _summary(["a"], 9, transfer=[found])
    write_html(tmp_path, summary, ["a"], {})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    # as many clips as the other model was attacked on, not the videos of this evaluation
    assert "Of 40 adversarial clips of step 9 under linf-1/255, 25 % are classified right" in text
    assert "; attacked" not in text
    assert _done(summary) == "40 adversarial clips of other models"


def test_the_line_of_random_weights_says_what_it_is_measured_on(tmp_path):
    text = _page(tmp_path, ["a", "b"], n=10)
    assert "linear probe on 10 videos with 3x1 views" in text


def test_an_evaluation_without_attacks_has_a_page(tmp_path):
    write_html(tmp_path, _summary(["a"], 9), ["a"], {"representation": ["## Representation"]})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    parsed(text)
    assert "Of 9 videos, 50 % are classified rightly." in text and "<h2>Representation" in text


@pytest.mark.parametrize(("frames", "kind"), [("1", "images"), ("16", "videos")])
def test_clips_of_one_frame_are_images(frames, kind, tmp_path):
    (tmp_path / "identity.json").write_text(json.dumps({"options": {"data.frames": frames}}))
    write_html(tmp_path, _summary(["a"], 9), ["a"], {})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"Of 9 {kind}, 50 %" in text


def test_corruptions_show_a_video_at_each_severity(tmp_path):
    rows = []
    for index in range(2):
        for name, severities in (("clean", [0]), ("fog", [1, 5])):
            kind = "corruption"
            predicted = [1] * len(severities)
            row = {"index": index, "uid": f"v{index}", "label": index, "kind": kind, "name": name}
            rows.append(row | {"severities": severities, "predicted": predicted, "error": None})
    with open(tmp_path / "corruptions.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "corrupted").mkdir()
    (tmp_path / "corrupted/video.json").write_text('{"index": 0}')
    for name in ("clean-0", "fog-1", "fog-5"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"corrupted/{name}.webp")
    table = replace(corruption_table(rows, [1, 5], ["a", "b"]), place="view", views="1x1")
    write_html(tmp_path, _summary(["a", "b"], 2, corruption=table), ["a", "b"], {})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    tree = parsed(text)
    buttons = [b.get("data-picture") for b in tree.iter("button") if b.get("data-picture")]
    assert buttons == ["fog-1", "fog-5"] and "50.0" in text
    pictures = next(e for e in tree.iter("script") if e.get("id") == "corrupted-pictures")
    assert {key: value[1] for key, value in json.loads(pictures.text).items()} == {
        "clean-0": "b",
        "fog-1": "b",
        "fog-5": "b",
    }
    shutil.rmtree(tmp_path / "corrupted")
    write_html(tmp_path, _summary(["a", "b"], 2, corruption=table), ["a", "b"], {})
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "50.0" in text and not [b for b in parsed(text).iter("button") if b.get("data-picture")]


def test_pictures_are_of_the_first_video_that_decodes(tmp_path):
    clips = torch.randint(0, 256, (1, 4, 8, 8, 3), dtype=torch.uint8)
    bad = Failure(0, "v0", 0, "no frame")
    conditions = [("clean", 0), ("fog", 5)]
    spec = ClipSpec(frames=4, stride=1, clips=1)
    for index, first in ((0, bad), (1, clips), (2, clips)):
        save_pictures(tmp_path, Corrupted(index, conditions, [first, clips]), spec)
    assert shown_video(tmp_path) == 1
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["clean-0.webp", "fog-5.webp", "video.json"]
    picture = Image.open(tmp_path / "fog-5.webp")
    assert picture.n_frames == 4 and picture.size == (8, 8)


# --- Numbers behind the page ---


@pytest.mark.parametrize("shape", [(2, 3, 1, 20, 33), (1, 3, 5, 16, 16), (2, 3, 70, 40, 17)])
def test_when_and_where_a_clip_changed(shape):
    change = torch.randn(shape, generator=torch.Generator().manual_seed(1)) / 50
    frames, maps = change_per_frame(change), change_maps(change)
    for i in range(shape[0]):
        squares = [float((change[i, :, t] ** 2).mean()) for t in range(shape[2])]
        if shape[2] <= 32:
            assert np.allclose(frames[i], np.sqrt(squares), rtol=1e-3)
        assert len(frames[i]) == min(shape[2], 32)
        # parts of unequal length overlap by a frame at most, so that the energy is about kept
        assert np.isclose(np.mean(np.square(frames[i])), np.mean(squares), rtol=0.05)
        place = read_map(maps[i])
        height, width = shape[3:]
        for row in range(16):
            for column in range(16):
                top, bottom = row * height // 16, -(-(row + 1) * height // 16)
                left, right = column * width // 16, -(-(column + 1) * width // 16)
                cell = change[i, :, :, top:bottom, left:right].abs().mean()
                assert abs(place[row, column] - float(cell)) <= place.max() / 255


def test_a_fingerprint_leaves_out_videos_that_are_not_attacked():
    rows = _rows(["a", "b"], 10)
    one = [row for row in rows if row.threat == "linf-2/255"]
    wrong = [replace(row, killed_by="clean", change_frames=[9.0] * 4) for row in one[:3]]
    attacked = [replace(row, killed_by="pgd") for row in one[3:]]
    found = fingerprint([*wrong, *attacked])
    assert found.n == 7 and np.allclose(found.frames, attacked[0].change_frames)
    assert fingerprint(wrong) is None


def test_an_image_has_a_map_of_the_change_and_no_chart_over_time():
    curve = robust_curve(_rows(["a"], 3, frames=1), [parse_threat(name) for name in THREATS])
    rows = [row for row in _rows(["a"], 3, frames=1) if row.threat == "linf-2/255"]
    image = next(each for each in fingerprints(curve, rows) if each.threat == "linf-2/255")
    assert image.frames is None and image.place.startswith("data:image/png")


def test_source_videos_of_any_length_share_a_fingerprint():
    rows = [replace(row, killed_by="pgd") for row in _rows(["a"], 2) if row.threat == "linf-2/255"]
    long, short = replace(rows[0], change_frames=[1.0, 2.0, 3.0]), replace(rows[1])
    short = replace(short, change_frames=[1.0, 3.0])
    # the middle of the short one lies between its ends, in energy
    expected = np.sqrt([1.0, (4 + 5) / 2, 9.0])
    assert np.allclose(fingerprint([long, short]).frames, expected)


def test_confidence_by_frame_is_that_of_a_clip_filled_by_the_frame(tmp_path):
    broken = _clip(1, frames=40)
    save_broken_clips(tmp_path, [broken], 1)
    with np.load(tmp_path / "linf-000001.npz") as saved:
        content = dict(saved)
    assert len(content["frames"]) == 32 and content["frames"][-1] == 39
    for name, clip in (("clean", content["clip"] / 255), ("adv", content["adversarial"])):
        for t, both in zip(content["frames"], content[f"{name}_by_frame"], strict=True):
            mean = clip[:, t].mean()
            expected = np.exp([mean, 1 - mean]) / np.exp([mean, 1 - mean, -mean]).sum()
            assert np.allclose(both, expected, atol=1e-5)


def test_kept_clips_are_of_many_classes(tmp_path):
    """Videos come sorted by class: the first ones alone would all be of the first class."""
    for index in range(12):
        save_broken_clips(tmp_path, [_clip(index, label=index // 4)], 3)
    labels = []
    for path in sorted(tmp_path.glob("*.npz")):
        with np.load(path) as saved:
            labels.append(int(saved["label"]))
    assert labels == [0, 1, 2]


def test_ranks_leave_the_clips_of_others_and_one_selects_at_the_end(tmp_path):
    """Two ranks that deleted each other's files ended the evaluation."""
    for index in range(12):
        rank = index % 2
        clip = _clip(index, label=index // 4)
        save_broken_clips(tmp_path, [clip], 3, lambda other, rank=rank: other % 2 == rank)
    kept = sorted(int(path.stem[-6:]) for path in tmp_path.glob("*.npz"))
    assert kept == [0, 1, 4, 5, 8, 9]  # the first of each class, by rank
    select_broken_clips(tmp_path, 3)
    assert sorted(int(path.stem[-6:]) for path in tmp_path.glob("*.npz")) == [0, 4, 8]


def test_a_line_chart_draws_points_where_they_belong():
    points = [Point(0, 1.0, 0.9, 1.0, "a"), Point(4, 0.5, 0.4, 0.6, "<b>")]
    chart = str(line_chart([Line("x", points)], "budget", "accuracy", "t"))
    parsed(f"<!doctype html><html><head><title>t</title></head><body>{chart}</body></html>")
    assert 'points="46.0,14.0 506.0,135.0"' in chart and "&lt;b&gt;" in chart


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "Of 40 videos, 78 % are classified rightly; 0 % still are when every pixel may move"),
        ({"curve": []}, "Of 40 videos, 78 % are classified rightly."),
        ({"curve": [], "clean_acc": None}, "Of 40 videos, 50 % are classified rightly."),
    ],
)
def test_the_verdict_says_the_numbers_in_words(changes, expected):
    curve = [
        robust_curve([replace(row, robust=False) for row in _rows(["a", "b"], 40)], [threat])[0]
        for threat in map(parse_threat, ("linf-0", "linf-1/255"))
    ]
    values = {"curve": curve, "clean_acc": 0.78}
    assert verdict(_summary(["a", "b"], 40, **values | changes)).startswith(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("frames1-linf-1/255", "every pixel of 1 frame may move by 1/255"),
        ("frames2-linf-1/255", "every pixel of 2 frames may move by 1/255"),
        ("pixels1-linf-1", "1 pixel of every frame may move by any amount"),
        ("border1-l2-0.5", "a border of 1 pixel may move, in all by 0.5 (L2)"),
        ("patch1-linf-1", "a square of 1 pixel may be painted over"),
        ("linf-1", "every pixel may move by any amount"),
        ("linf-0.5", "every pixel may move by 128/255"),
    ],
)
def test_a_threat_in_words_has_right_numbers(name, expected):
    model = parse_threat(name)
    rows = [replace(_rows(["a"], 1)[0], threat=name, eps=model.eps)]
    assert in_words(robust_curve(rows, [model])[0]) == expected


def test_no_two_lines_of_a_chart_look_alike():
    points = [Point(0, 1.0, 0.9, 1.0, "a"), Point(4, 0.5, 0.4, 0.6, "b")]
    lines = [Line(f"x{i}", points) for i in range(8)] + [Line("y", points, grey=True)] * 4
    text = str(line_chart(lines, "budget", "accuracy", "t"))
    drawn = re.findall(r'<g class="(\w+)"><polygon.*?class="curve ?([^"]*)"', text)
    assert len(drawn) == 12 and len(set(drawn)) == 12
    assert len(set(re.findall(r'<li class="([^"]*)"', str(legend(lines))))) == 12


def _baseline(folder, videos, n=2, **others):
    """Write an evaluation of videos, (uid, label) each, that serves as a baseline."""
    folder.mkdir(parents=True)
    rows = [json.dumps({"uid": uid, "label": label}) + "\n" for uid, label in videos]
    (folder / "predictions.jsonl").write_text("".join(rows))
    curve = robust_curve(_rows(["a"], n), [parse_threat(name) for name in THREATS])
    summary = _summary(["a"], n, curve=curve, clean_acc=0.8, threats=THREATS, **others)
    write_summary(folder / "summary.json", summary)
    return summary


def test_a_baseline_of_the_same_videos_is_drawn_and_says_what_differs(tmp_path):
    videos = [("v0", 0), ("v1", 0)]
    ours = _baseline(tmp_path / "one/eval/pgd", videos, suite="autoattack")
    _baseline(tmp_path / "two/eval/pgd", videos, suite="pgd-20x1", manifest_sha="other training")
    found = read_baseline(tmp_path / "two", tmp_path / "one/eval/pgd", ours)
    assert found.differences == ["attack pgd-20x1"] and found.name == "two/eval/pgd"
    write_html(tmp_path / "one/eval/pgd", ours, ["a"], {}, found)
    text = (tmp_path / "one/eval/pgd/report.html").read_text(encoding="utf-8")
    assert "linf, two/eval/pgd" in text and "measured otherwise: attack pgd-20x1" in text


def test_a_baseline_is_remembered_until_it_has_gone(tmp_path, caplog):
    videos = [("v0", 0), ("v1", 0)]
    out = tmp_path / "one/eval/pgd"
    ours = _baseline(out, videos)
    assert remembered_baseline(out, ours) is None
    _baseline(tmp_path / "two/eval/pgd", videos)
    remember_baseline(tmp_path / "two", out)
    # both moved together
    shutil.copytree(tmp_path, tmp_path / "copy/of")
    for place in (tmp_path, tmp_path / "copy/of"):
        found = remembered_baseline(place / "one/eval/pgd", ours)
        assert found is not None and found.name == "two/eval/pgd"
    (tmp_path / "two/eval/pgd/summary.json").unlink()
    assert remembered_baseline(out, ours) is None
    (out / "baseline.json").write_text("{")
    assert remembered_baseline(out, ours) is None
    warnings = [
        record.message for record in caplog.records if "without its baseline" in record.message
    ]
    assert "holds no finished evaluation" in warnings[0] and "baseline.json: damaged" in warnings[1]


@pytest.mark.parametrize(
    ("videos", "others", "message"),
    [
        ([("v0", 0), ("w", 0)], {}, "other data: test videos;"),
        ([("v0", 0), ("v1", 1)], {}, "other data: test videos;"),
        ([("v0", 0), ("v1", 0)], {"dataset": "ucf101"}, r"data: data.name \(ucf101, here list\)"),
        ([("v0", 0), ("v1", 0)], {"split": "test, fold 2"}, r"split \(test, fold 2, here test\)"),
        ([("v0", 0), ("v1", 0)], {"n": 1}, r"eval.limit \(1, here 2\)"),
        ([("v0", 0), ("v1", 0)], {"unit": "video"}, r"eval.unit \(video, here clip\)"),
    ],
)
def test_a_baseline_of_other_videos_is_refused(videos, others, message, tmp_path):
    ours = _baseline(tmp_path / "one/eval/pgd", [("v0", 0), ("v1", 0)])
    _baseline(tmp_path / "two/eval/pgd", videos, **others)
    with pytest.raises(UserError, match=message):
        read_baseline(tmp_path / "two", tmp_path / "one/eval/pgd", ours)
    with pytest.raises(UserError, match="holds no finished evaluation"):
        read_baseline(tmp_path / "three", tmp_path / "one/eval/pgd", ours)


def _attacked(folder, videos):
    """Replace the list of all test videos of an evaluation by rows of its attacks."""
    (folder / "predictions.jsonl").unlink()
    rows = [{"uid": uid, "label": 0, "threat": name} for uid in videos for name in THREATS]
    # a call on two ranks that was stopped before they were merged
    for rank, part in (("", rows[:1]), (".rank1", rows[1:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"results{rank}.jsonl").write_text(text)


def test_attacked_videos_are_compared_where_no_file_lists_all(tmp_path):
    videos = [("v0", 0), ("v1", 0)]
    ours = _baseline(tmp_path / "one/eval/pgd", videos)
    for name in ("same", "other"):
        _baseline(tmp_path / name, videos)
    for name, uids in (("one/eval/pgd", "ab"), ("same", "ab"), ("other", "ac")):
        _attacked(tmp_path / name, uids)
    assert read_baseline(tmp_path / "same", tmp_path / "one/eval/pgd", ours).differences == []
    with pytest.raises(UserError, match="other data: test videos;"):
        read_baseline(tmp_path / "other", tmp_path / "one/eval/pgd", ours)


@pytest.mark.parametrize("whose", ["one", "two"])
def test_a_baseline_whose_videos_are_unknown_is_refused(whose, tmp_path):
    for name in ("one", "two"):
        ours = _baseline(tmp_path / name, [("v0", 0), ("v1", 0)])
    (tmp_path / whose / "predictions.jsonl").unlink()
    with pytest.raises(UserError, match="no list of test videos can be compared") as error:
        read_baseline(tmp_path / "two", tmp_path / "one", ours)
    assert "\n" not in str(error.value)


def _clips_by(folder, frames, stride="2", size="16"):
    """Let an evaluation have made its clips by these options."""
    options = {"data.frames": frames, "data.stride": stride, "data.size": size}
    options |= {"data.short_side": "20", "data.fps": "0"}
    (folder / "identity.json").write_text(json.dumps({"options": options}))


def test_all_settings_of_a_baseline_that_differ_are_listed(tmp_path):
    videos = [("v0", 0), ("v1", 0)]
    ours = _baseline(tmp_path / "one", videos)
    _baseline(
        tmp_path / "two",
        videos,
        protocol="linear",
        labels="10%",
        classifier="kNN",
        views={"attack": "1x1", "representation": "10x3"},
        view_average="probabilities",
    )
    _clips_by(tmp_path / "one", "4")
    _clips_by(tmp_path / "two", "8", "1", "24")
    assert read_baseline(tmp_path / "two", tmp_path / "one", ours).differences == [
        "classifier kNN",
        "protocol linear",
        "labels 10%",
        "views 10x3",
        "average of probabilities",
        "frames 8",
        "stride 1",
        "size 24 x 24",
    ]
    (tmp_path / "two/identity.json").unlink()
    differences = read_baseline(tmp_path / "two", tmp_path / "one", ours).differences
    assert differences[-1] == "frames, stride and size unknown"


@pytest.mark.parametrize(
    ("ours", "theirs", "sentence"),
    [
        ("linf-1/255", "l2-0.5", "The baseline two has no kind of threat in common."),
        ("linf-1/255", "linf-0", "The baseline two has no attacks."),
        ("linf-0", "linf-1/255", "there is nothing to compare the baseline two with."),
        ("linf-1/255", "linf-2/255", "In grey: two, on the same videos."),
    ],
)
def test_the_page_says_why_a_baseline_is_not_drawn(ours, theirs, sentence, tmp_path):
    curves = []
    for name in (ours, theirs):
        rows = [replace(row, threat=name, eps=parse_threat(name).eps) for row in _rows(["a"], 1)]
        curves.append(robust_curve(rows[:1], [parse_threat(name)]))
    summary = _summary(["a"], 1, curve=curves[0], clean_acc=0.8, threats=[ours])
    found = Baseline("two", replace(summary, curve=curves[1], threats=[theirs]), [])
    write_html(tmp_path, summary, ["a"], {}, found)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert sentence in text
    assert ("linf, two" in text) == ("In grey: two" in text) == (theirs == "linf-2/255")
    parsed(text)


def test_a_baseline_on_other_data_is_refused_before_anything_is_measured(tmp_path):
    cfg = config.loads("", tiny(f"data.root={tiny_ucf101(tmp_path / 'data')}", "eval.limit=3"))
    _, test, _ = build_lists(cfg.data)
    videos = [(record.uid, record.label) for record in test]
    same = {"dataset": "ucf101", "split": "test, fold 1"}
    _baseline(tmp_path / "same", videos, n=3, **same)
    check_baseline(tmp_path / "same", cfg)
    _baseline(tmp_path / "list", videos, n=3)
    with pytest.raises(UserError, match=r"data.name \(list, here ucf101\)"):
        check_baseline(tmp_path / "list", cfg)
    _baseline(tmp_path / "attacked", videos, n=3, **same)
    _attacked(tmp_path / "attacked", ["x", "y", "z"])
    with pytest.raises(UserError, match="other data: test videos;"):
        check_baseline(tmp_path / "attacked", cfg)


# --- In a browser ---


@needs_chromium
def test_controls_work_in_a_browser(tmp_path):
    clips = [_clip(i, frames=5, label=i % 2, uid=f"v{i}") for i in range(4)]
    _page(tmp_path, ["a", "b"], n=40, clips=clips)
    answer = in_browser(
        tmp_path / "report.html",
        """
        await settled(() => document.querySelectorAll(".clip[data-ready]").length === 4);
        const clip = document.querySelector(".clip");
        const pixel = (i) => {
            const context = clip.querySelectorAll("canvas")[i].getContext("2d");
            return [...context.getImageData(3, 2, 1, 1).data];
        };
        const slider = clip.querySelector(".frame");
        slider.value = 3; slider.dispatchEvent(new Event("input"));
        const gain = clip.querySelector(".gain");
        gain.value = 10; gain.dispatchEvent(new Event("input"));
        const frame = [0, 1, 2].map(pixel);
        const paused = clip.querySelector(".play").textContent;
        clip.querySelector(".play").click();
        const playing = clip.querySelector(".play").textContent;
        const choose = (key, value) => {
            const field = document.querySelector(`.clip-filter[data-key=${key}]`);
            field.value = value; field.dispatchEvent(new Event("change"));
        };
        const visible = () => document.querySelectorAll(".clip:not([hidden])").length;
        choose("true", "a");
        const filtered = [visible(), document.getElementById("clip-count").textContent];
        choose("true", "");
        document.querySelector('.to-clips[data-true="b"]').click();
        const linked = visible();
        const button = document.querySelectorAll("#class-table th button")[2];
        const rows = document.querySelector("#class-table tbody").rows;
        const column = () => [...rows].map((row) => Number(row.cells[2].dataset.value));
        button.click(); const down = column();
        button.click(); const up = column();
        return {frame, paused, playing, filtered, linked, down, up,
                wide: document.documentElement.scrollWidth <= innerWidth};
        """,
        tmp_path,
    )
    first = clips[0].content
    original = first["clip"][:, 3, 2, 3].astype(int)
    twin = np.round(255 * first["adversarial"][:, 3, 2, 3]).astype(int)
    difference = (128 + 10 * (twin - original)).clip(0, 255)
    for shown, expected in zip(answer["frame"], (original, twin, difference), strict=True):
        assert shown[:3] == expected.tolist()
    assert (answer["paused"], answer["playing"]) == ("play", "pause")
    assert answer["filtered"] == [2, "2 clips"] and answer["linked"] == 2
    assert answer["down"] == sorted(answer["down"], reverse=True)
    assert answer["up"] == sorted(answer["up"]) and answer["wide"]


@needs_chromium
def test_a_phone_shows_the_page_without_scrolling_sideways(tmp_path):
    names = [f"class with a long name {i} " + "x" * 60 for i in range(20)]
    _page(tmp_path, names, n=40, clips=[_clip(0, uid="y" * 200)], warnings=["z" * 300])
    answer = in_browser(
        on_phone(tmp_path / "report.html", tmp_path),
        """
        const frame = document.querySelector("iframe");
        await settled(() => frame.contentDocument.querySelector(".clip[data-ready]"));
        const inner = frame.contentDocument;
        const hidden = (e) => e.closest(".scroll, .skip, [hidden]");
        const wide = [...inner.querySelectorAll("main *")].filter(
            (e) => !hidden(e) && e.getBoundingClientRect().right > 391);
        return {wide: wide.map((e) => e.outerHTML.slice(0, 80)),
                fits: inner.documentElement.scrollWidth <= inner.documentElement.clientWidth};
        """,
        tmp_path,
    )
    assert answer == {"wide": [], "fits": True}


def test_the_example_in_the_docs_is_what_this_revision_writes():
    path = REPO / "docs/examples/demo_report.html"
    text = path.read_text(encoding="utf-8")
    tree = parsed(text)
    assert path.stat().st_size < 3_000_000 and outside(text) == []
    bibtex = next(each for each in tree.iter("pre") if each.get("id") == "bibtex")
    assert bibtex.text.count("\n}") > 5 and "\\n" not in bibtex.text
    # its style and script are those of the templates
    templates = REPO / "vidrobust/evaluation/report/templates"
    for name in ("page.css", "tables.js", "report.js"):
        assert (templates / name).read_text(encoding="utf-8").strip() in text, name
