import numpy as np
import pytest

from tests.helpers import (
    counting_frames,
    read_numbers,
)
from vidrobust.data import DecodeError, open_video, read_frames


def test_a_frame_folder_an_image_and_a_gif_are_videos(tmp_path):
    from PIL import Image

    frames = counting_frames(12)
    folder = tmp_path / "clip"
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"img_{number + 1}.png")  # img_2 comes before img_10
    (folder / "notes.txt").write_text("not a frame")
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(tmp_path / "v.gif", save_all=True, append_images=pictures[1:], duration=40)
    for path in (folder, tmp_path / "v.gif"):
        with open_video(path) as video:
            assert video.num_frames == 12
        assert read_numbers(read_frames(path, np.array([11, 0, 3]))) == [11, 0, 3]
    assert read_numbers(read_frames(folder / "img_8.png", np.array([0]))) == [7]


def test_an_image_is_turned_as_its_exif_says(tmp_path):
    from PIL import Image

    image = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "i.jpg", exif=exif)
    assert read_frames(tmp_path / "i.jpg", np.array([0])).shape == (1, 40, 20, 3)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DecodeError, match=f"{tmp_path}: the folder holds 0 images of 1"):
        read_frames(tmp_path, np.array([0]))
