import numpy as np
import pytest
from PIL import Image

from tests.helpers import counting_frames, counting_video, tool
from vidrobust.corruptions import corrupt
from vidrobust.evaluation import contact_sheet


def test_a_row_a_corruption_with_the_clip_first():
    clip = counting_frames(5, 32)
    sheet = np.asarray(contact_sheet(clip, ["contrast", "fog", "freeze"], frame=2, seed=4))
    assert sheet.shape == (12 + 2 * 44, 2 * 6 * 32 + 6, 3)
    for row, block, name in ((0, 0, "contrast"), (1, 0, "fog"), (0, 1, "freeze")):
        left, top = block * (6 * 32 + 6), row * 44 + 24
        assert (sheet[top : top + 32, left : left + 32] == clip[2]).all()
        strongest = corrupt(clip, name, 5, np.random.default_rng(4))[2]
        assert (sheet[top : top + 32, left + 160 : left + 192] == strongest).all()
    with pytest.raises(ValueError, match="frame 5 of a clip of 5"):
        contact_sheet(clip, ["fog"], frame=5)


def test_the_tool_draws_a_video(tmp_path):
    counting_video(tmp_path / "v.avi", 9)
    done = tool("visualize", "--video", "v.avi", "--output", "sheet.png", "data.frames=4", "data.size=32",
                "eval.corruption.names=[fog,jumble]", "--first", "5", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "sheet.png: frame 2 of 0 to 3, corruptions: 2\n"
    assert (tmp_path / "sheet.png").stat().st_size > 500
    for words, reason in (
        (["data.frames=40"], "are not all within its 9 frames"),
        (["data.frames=4", "--frame", "4"], "frame 4 of a clip of 4"),
        (["eval.corruption.names=[fogg]"], "no corruption 'fogg'"),
    ):
        done = tool("visualize", "--video", "v.avi", "--output", "no.png", *words, cwd=tmp_path)
        assert done.returncode == 1 and reason in done.stderr and "Traceback" not in done.stderr
    Image.new("RGB", (32, 32)).save(tmp_path / "one.jpg")
    for words, reason in (
        (["v.avi", "--output", "no.gif"], "no.gif: a picture is a .png or a .jpg"),
        (["v.avi", "--output", "nowhere/no.png"], "there is no folder nowhere"),
        (["one.jpg", "--output", "no.png"], "one.jpg is one image: set data.frames=1"),
    ):
        done = tool("visualize", "--video", *words, cwd=tmp_path)
        assert done.returncode == 1 and reason in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "no.png").exists()
