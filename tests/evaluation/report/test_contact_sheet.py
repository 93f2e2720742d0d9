import numpy as np
import pytest
from PIL import Image

from tests.helpers import counting_frames, counting_video, read_numbers, tool
from vidrobust.corruptions import corrupt
from vidrobust.data import scan
from vidrobust.evaluation import contact_sheet
from vidrobust.evaluation.natural.bias import ALONE, PAIRED
from vidrobust.evaluation.report.contact_sheet import cue_sheet, cues
from vidrobust.views import NegativeSpec


def test_the_sheet_has_a_row_per_corruption_with_the_clean_frame_first():
    clip = counting_frames(5, 32)
    sheet = np.asarray(contact_sheet(clip, ["contrast", "fog", "freeze"], frame=2, seed=4))
    assert sheet.shape == (12 + 2 * 44, 2 * 6 * 32 + 6, 3)
    for row, block, name in ((0, 0, "contrast"), (1, 0, "fog"), (0, 1, "freeze")):
        left, top = block * (6 * 32 + 6), row * 44 + 24
        assert (sheet[top : top + 32, left : left + 32] == clip[2]).all()
        strongest = corrupt(clip, name, 5, np.random.default_rng(4))[2]
        assert (sheet[top : top + 32, left + 160 : left + 192] == strongest).all()
    with pytest.raises(ValueError, match="frame=5: the clip has frames 0 to 4"):
        contact_sheet(clip, ["fog"], frame=5)


def test_the_command_line_draws_corruptions_of_a_video(tmp_path):
    counting_video(tmp_path / "v.avi", 9)
    done = tool(
        "visualize",
        "--video",
        "v.avi",
        "--output",
        "sheet.png",
        "data.frames=4",
        "data.size=32",
        "eval.corruption.names=[fog,jumble]",
        "--first",
        "5",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "sheet.png: frame 2 of 0 to 3, corruptions: 2\n"
    assert (tmp_path / "sheet.png").stat().st_size > 500
    for words, reason in (
        (["data.frames=40"], "are not all within its 9 frames"),
        (["data.frames=4", "--frame", "4"], "frame=4: the clip has frames 0 to 3"),
        (["eval.corruption.names=[fogg]"], "unknown corruption 'fogg'"),
    ):
        done = tool("visualize", "--video", "v.avi", "--output", "no.png", *words, cwd=tmp_path)
        assert done.returncode == 1 and reason in done.stderr and "Traceback" not in done.stderr
    Image.new("RGB", (32, 32)).save(tmp_path / "one.jpg")
    for words, reason in (
        (["v.avi", "--output", "no.gif"], "no.gif: must be a .png or a .jpg"),
        (["v.avi", "--output", "nowhere/no.png"], "there is no folder nowhere"),
        (["one.jpg", "--output", "no.png"], "one.jpg is one image; set data.frames=1"),
    ):
        done = tool("visualize", "--video", *words, cwd=tmp_path)
        assert done.returncode == 1 and reason in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "no.png").exists()


@pytest.mark.parametrize("frames", [1, 8])
def test_views_of_a_clip_keep_its_shape_and_frames(frames):
    """The views are those of losses and biases: frames in order, patches of the given size."""
    clip, other = counting_frames(frames, 32), counting_frames(frames, 32, first=500)
    names = ["patch", "texture", *([*ALONE, "swapped"] if frames > 1 else ["conflict"])]
    views = cues(clip, names, NegativeSpec(patch_px=(28, 28)), seed=3, other=other)
    assert list(views) == list(dict.fromkeys(names)) and all(
        c.shape == clip.shape for c in views.values()
    )
    assert all(
        (a == b).all()
        for a, b in zip(
            views.values(),
            cues(clip, names, NegativeSpec(patch_px=(28, 28)), seed=3, other=other).values(),
            strict=True,
        )
    )
    if frames > 1:
        assert (
            read_numbers(views["reverse"]) == [*range(8)][::-1]
            and len({*read_numbers(views["freeze"])}) == 1
        )
        assert sorted(read_numbers(views["shuffle"])) == [*range(8)]
    sheet = np.asarray(cue_sheet({"as it is": clip} | views, blocks=1))
    shown = min(frames, 6)
    assert sheet.shape == ((1 + len(views)) * 44, shown * 32, 3)
    assert (sheet[12:44, -32:] == clip[-1]).all() and (
        sheet[-32:, :32] == views[names[-1]][0]
    ).all()
    assert PAIRED.keys() & set(names)


def test_the_command_line_draws_negatives_and_cues(tmp_path):
    counting_video(tmp_path / "v.avi", 9)
    counting_video(tmp_path / "w.avi", 9, first=600)
    words = (
        "visualize",
        "--video",
        "v.avi",
        "--output",
        "sheet.png",
        "data.frames=8",
        "data.size=32",
    )
    done = tool(
        *words,
        "method.negatives.names=[patch,shuffle]",
        "eval.bias=[texture,swapped]",
        "--other",
        "w.avi",
        cwd=tmp_path,
    )
    assert done.stdout == "sheet.png: of 8 frames: patch, shuffle, texture, swapped\n", done.stderr
    assert Image.open(tmp_path / "sheet.png").size == (2 * 6 * 32 + 6, 3 * 44)
    for more, reason in (
        (
            ["eval.bias=[swapped]"],
            "swapped needs a second clip, of another class: add --other FILE",
        ),
        (["eval.bias=[conflict]", "--other", "w.avi"], "conflict: needs images"),
        (["eval.bias=[pach]"], "eval.bias: unknown name 'pach'; did you mean 'patch'"),
        (["method.negatives.names=[pach]"], "method.negatives.names: unknown name 'pach'"),
        (
            ["method.negatives.names=[shuffle]", "data.frames=1"],
            "shuffle changes nothing in a clip of one frame",
        ),
    ):
        keys = {word.split("=")[0] for word in more}
        done = tool(
            *(word for word in words if word.split("=")[0] not in keys), *more, cwd=tmp_path
        )
        assert done.returncode == 1 and reason in done.stderr and "Traceback" not in done.stderr, (
            done.stderr
        )


def test_a_damaged_video_is_drawn_up_to_the_frames_of_its_manifest(tmp_path):
    """The folder has one class: a video that is cut short, and the scan of it."""
    path = counting_video(tmp_path / "train/a/v.avi", 60)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    words = (
        "--video",
        path,
        "--output",
        "sheet.png",
        "data.frames=4",
        "data.size=32",
        "data.name=folder",
        f"data.root={tmp_path}",
        "eval.corruption.names=[contrast]",
    )
    assert "cut short" in tool("visualize", *words, cwd=tmp_path).stderr
    scan([str(path)], tmp_path, tmp_path / "m.jsonl")
    done = tool("visualize", *words, "data.manifest=m.jsonl", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "sheet.png").is_file(), done.stderr
