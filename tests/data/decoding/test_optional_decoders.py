import re
import subprocess
import sys
import types

import pytest

from tests.helpers import (
    REPO,
    counting_frames,
    counting_video,
    encode,
    has_backend,
)
from vidrobust.config import DataConfig
from vidrobust.data import eval_dataset, ucf101
from vidrobust.data.decoding.pyav import (
    misleads,
    open_container,
    require_backend,
    video_stream,
)
from vidrobust.utils.errors import UserError

_HAS_TORCHCODEC = has_backend("torchcodec")


def _alone(code, *arguments):
    """Run code in a Python process of its own, because imports happen once per process."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=REPO
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_imports_modules_that_torchvision_removed():
    """torchvision.io no longer reads videos, and pytorchvideo.transforms does not import."""
    for path in sorted((REPO / "vidrobust").rglob("*.py")):
        assert not re.search(
            r"torchvision\.io|torchvision import io|pytorchvideo\.transforms", path.read_text()
        ), path


def test_decord_is_imported_after_torch_and_only_on_request(tmp_path):
    code = """
import sys
import numpy as np
from vidrobust.data import read_frames
assert "torch" in sys.modules and not {"decord", "torchcodec", "pytorchvideo"} & set(sys.modules)
read_frames(sys.argv[1], np.array([3]))
assert "decord" not in sys.modules
print(read_frames(sys.argv[1], np.array([3]), backend="decord").shape)
"""
    assert _alone(code, counting_video(tmp_path / "v.avi", 10)) == "(1, 64, 64, 3)\n"


def test_without_decord_everything_else_works_and_a_run_that_needs_it_is_refused(tmp_path, ucf):
    code = """
import sys
sys.modules["decord"] = None
import numpy as np
from pathlib import Path
from vidrobust.config import AugmentConfig, DataConfig
from vidrobust.data import read_frames, train_dataset, ucf101
from vidrobust.utils.errors import UserError
assert read_frames(sys.argv[1], np.array([3])).shape == (1, 64, 64, 3)
try:
    records = ucf101(Path(sys.argv[2]), "train", 1)[0]
    train_dataset(DataConfig(backend="decord"), AugmentConfig(), records, 2, 0)
except UserError as error:
    print(error)
"""
    output = _alone(code, counting_video(tmp_path / "v.avi", 10), ucf)
    assert (
        output.startswith("data.backend=decord: decord does not import")
        and "set data.backend=pyav" in output
    )


@pytest.mark.skipif(_HAS_TORCHCODEC, reason="torchcodec is installed")
def test_torchcodec_says_what_it_needs(ucf):
    with pytest.raises(UserError, match="torchcodec does not import .*n FFmpeg that it finds"):
        eval_dataset(DataConfig(backend="torchcodec"), ucf101(ucf, "test", 1)[0], 1)


def test_torchcodec_without_libraries_is_refused_before_a_run(monkeypatch):
    """It imports, but fails at its first use: without the check, every video would look bad."""

    def load(source):
        raise RuntimeError(
            "Could not load libtorchcodec. Likely causes:\n  1. FFmpeg is not properly installed"
        )

    decoders = types.ModuleType("torchcodec.decoders")
    decoders.VideoDecoder = load
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    with pytest.raises(UserError) as refused:
        require_backend("torchcodec")
    assert (
        str(refused.value)
        == "data.backend=torchcodec: torchcodec does not import (it finds no FFmpeg libraries of a"
        " supported version); install an FFmpeg that it finds, or set data.backend=pyav"
    )


@pytest.mark.parametrize(
    ("codec", "backend", "reason"),
    [("libx265", "decord", "HEVC"), ("libx265", "torchcodec", ""), ("libx264", "decord", "")],
)
def test_known_causes_of_wrong_frames_are_recognised(tmp_path, codec, backend, reason):
    options = {"bf": "2"} | ({"x265-params": "log-level=none"} if codec == "libx265" else {})
    path = encode(tmp_path / "v.mkv", counting_frames(20, 128), codec, options=options)
    with open_container(str(path)) as container:
        assert video_stream(container).codec_context.has_b_frames
        assert misleads(container, backend) == reason
