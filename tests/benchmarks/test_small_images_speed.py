import numpy as np
import pytest
from PIL import Image

from vidrobust import config
from vidrobust.benchmarks.small_images import print_small_images
from vidrobust.utils.errors import UserError

WORDS = [
    "data.name=image_folder",
    "data.frames=1",
    "data.size=16",
    "data.short_side=16",
    "model.backbone=resnet18",
    "model.width=4",
    "model.hidden=8",
    "method.name=simclr",
    "optim.name=sgd",
    "train.batch_size=8",
]


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / f"train/class{number % 2}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return tmp_path


def test_images_per_second_of_both_loops_are_printed(root, capsys):
    print_small_images(config.loads("", [*WORDS, f"data.root={root}"]), rounds=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("resnet18 of width 4, 8 images of 16 x 16, two views; 2 blocks of 8")
    rates = [float(line.split("|")[2].split()[0]) for line in lines[3:6]]
    assert rates[2] == pytest.approx(rates[0] / rates[1], abs=0.02) and min(rates) > 0


@pytest.mark.parametrize(
    "word", ["method.name=moco", "method.adversary.name=clae", "data.frames=2"]
)
def test_other_methods_and_clips_are_refused(root, word):
    with pytest.raises(UserError, match="benchmark.py images: measures SimCLR without"):
        kept = [each for each in WORDS if each.split("=")[0] != word.split("=")[0]]
        print_small_images(config.loads("", [*kept, f"data.root={root}", word]), rounds=1)
