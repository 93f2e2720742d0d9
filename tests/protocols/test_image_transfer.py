"""Transfer between image sets with different numbers of classes."""

import numpy as np
import pytest
from PIL import Image

from tests.helpers import tiny, tool
from vidrobust import checkpoint
from vidrobust.evaluation import read_summary

WORDS = ("eval.clips=1", "eval.suite=pgd", "eval.steps=1", "eval.threats=[linf-1/255]")


def _images(root, classes, seed):
    """Write a folder of images of random pixels."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", 4), ("test", 2)):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two image folders, and a supervised run on the first, which has two classes."""
    top = tmp_path_factory.mktemp("images")
    _images(top / "pets", ("cat", "dog"), 0)
    _images(top / "fruit", ("apple", "fig", "pear"), 1)
    (top / "config.yaml").write_text("data: {name: image_folder, root: pets}")
    words = tiny(
        "data.name=image_folder",
        "data.frames=1",
        "data.short_side=20",
        "method.name=supervised",
        "eval.enabled=false",
    )
    done = tool("train_net", "--cfg", "config.yaml", "--output-dir", "run", *words, cwd=top)
    assert done.returncode == 0, done.stderr
    return top


def _transferred(place, *words):
    other = ("data.name=image_folder", "data.root=fruit", "data.workers=0", *WORDS, *words)
    return tool("test_net", "--checkpoint", "run", *other, cwd=place)


def test_a_probe_of_the_other_images_is_attacked(place):
    done = _transferred(place, "protocol.name=transfer")
    assert done.returncode == 0, done.stderr
    summary = read_summary(place / "run/eval/transfer/summary.json")
    assert (summary.classifier, summary.chance, summary.train_videos) == ("linear probe", 1 / 3, 12)
    assert [point.n for point in summary.curve] == [6]


def test_a_classifier_of_the_other_images_is_trained(place):
    done = _transferred(place, "protocol.name=slf", "train.batch_size=4", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    run = place / "run/finetuned/slf"
    summary = read_summary(run / "eval/slf/summary.json")
    assert (summary.classifier, summary.chance) == ("own head", 1 / 3)
    assert checkpoint.read_checkpoint(run)["model"]["head.weight"].shape[0] == 3
