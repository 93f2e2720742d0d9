import csv
import json
from dataclasses import asdict

import numpy as np
import pytest

from vidrobust.config import DataConfig, MotionShapes
from vidrobust.data import build_records, make_motionshapes, read_frames
from vidrobust.data.motionshapes import CLASSES, _motion
from vidrobust.utils.errors import UserError

SMALL = MotionShapes(train_per_class=10, test_per_class=3, frames=12, size=32)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_motionshapes(tmp_path_factory.mktemp("m") / "shapes", **asdict(SMALL))


def _data(root, fold=1):
    return DataConfig(name="motionshapes", root=str(root), fold=fold, motionshapes=SMALL)


def test_motionshapes_is_read_as_ucf101(shapes):
    train, classes = build_records(_data(shapes), "train")
    assert classes == sorted(CLASSES) and len(train) == 80
    assert len(build_records(_data(shapes), "test")[0]) == 24
    swapped = build_records(_data(shapes, 2), "test")[0]
    assert len(swapped) == 24 and not {r.uid for r in swapped} & {r.uid for r in train}
    assert read_frames(train[0].path, np.arange(12)).shape == (12, 32, 32, 3)


def test_texture_correlates_with_the_class_as_configured(shapes):
    rows = list(csv.DictReader(open(shapes / "attributes.csv")))
    train = [row for row in rows if row["split"] == "train"]
    share = np.mean([row["texture_class"] == row["class"] for row in train])
    assert 0.55 < share < 0.92  # 0.7, and one in fourteen of the rest, of 80
    swapped = [row for row in rows if row["split"] == "swapped"]
    assert all(row["texture_class"] not in ("", row["class"]) for row in swapped)
    assert all(row["texture"] != row["background"] for row in rows)


def test_the_same_seed_draws_the_same_pixels_and_another_does_not(shapes, tmp_path):
    again = make_motionshapes(tmp_path / "again", **asdict(SMALL))
    other = make_motionshapes(tmp_path / "other", **(asdict(SMALL) | {"seed": 1}))
    names = sorted(p.relative_to(shapes) for p in shapes.rglob("*.avi"))
    assert all((shapes / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert any((shapes / name).read_bytes() != (other / name).read_bytes() for name in names)


def test_a_second_call_reuses_the_data_set_and_other_options_are_refused(shapes):
    before = {p: p.stat().st_mtime_ns for p in shapes.rglob("*")}
    make_motionshapes(shapes, **asdict(SMALL))
    assert before == {p: p.stat().st_mtime_ns for p in shapes.rglob("*")}
    with pytest.raises(UserError, match="texture_correlation=0.7 there, 0.1 asked"):
        make_motionshapes(shapes, **(asdict(SMALL) | {"texture_correlation": 0.1}))


def test_an_interrupted_drawing_leaves_nothing_that_is_used(tmp_path, monkeypatch):
    from vidrobust.data import motionshapes as synthetic

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "write_video", stop)
        with pytest.raises(KeyboardInterrupt):
            make_motionshapes(tmp_path / "d", **asdict(SMALL))
    assert list(tmp_path.rglob("*.avi")) == []
    make_motionshapes(tmp_path / "d", **asdict(SMALL))
    assert json.loads((tmp_path / "d/motionshapes.json").read_text())["seed"] == 0


def test_two_runs_may_draw_the_data_set_at_once(tmp_path, monkeypatch):
    from vidrobust.data import motionshapes as synthetic

    draw = synthetic._draw_all

    def overtaken(top, spec):
        draw(top, spec)
        draw(tmp_path / "d", spec)  # another process finishes first

    monkeypatch.setattr(synthetic, "_draw_all", overtaken)
    make_motionshapes(tmp_path / "d", **asdict(SMALL))
    assert [p.name for p in tmp_path.iterdir()] == ["d"] and len(
        list(tmp_path.rglob("*.avi"))
    ) == 128


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="needs a folder of its own"):
        make_motionshapes(tmp_path, **asdict(SMALL))
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_the_motions_are_what_their_names_say():
    for seed in range(10):
        paths = {name: _motion(name, 60, np.random.default_rng(seed)) for name in CLASSES}
        steps = {name: np.diff(paths[name][0]) for name in ("Up", "Down")}
        assert np.median(steps["Up"]) < 0 < np.median(steps["Down"])
        radius = {name: np.median(np.diff(paths[name][2])) for name in ("Grow", "Shrink")}
        assert radius["Shrink"] < 0 < radius["Grow"]
        assert np.ptp(paths["Sideways"][0]) == 0 < np.ptp(paths["Sideways"][1])
        assert np.ptp(paths["Spin"][3]) > np.pi and np.ptp(paths["Spin"][0]) == 0
        y, x = paths["Orbit"][:2]
        assert np.allclose(np.hypot(y - 0.5, x - 0.5), 0.26)
        assert np.ptp(paths["Bounce"][0]) > 0.4
