import os
import signal

import numpy as np
import pytest
from PIL import Image

from tests.helpers import (
    REPO,
    SHARED,
    counting_frames,
    needs_ucf101_mini,
    read_numbers,
    tiny,
    tiny_ucf101,
    tool,
)
from tests.processes import PIPE, Process
from vidrobust import config
from vidrobust.corruptions import corrupt
from vidrobust.data import all_records, read_frames, read_manifest

PAGE = REPO / "configs/ucf101_csl.yaml"


def test_scan_then_train_with_its_manifest(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    (root / "videos/Alpha/v_Alpha_g01_c01.avi").write_bytes(b"")
    done = tool("prepare", "scan", f"data.root={root}", "--workers", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "W videos/Alpha/v_Alpha_g01_c01.avi: the file is empty" in done.stderr
    assert "12 files, 1 bad, 0 damaged but used" in done.stderr and "100%" in done.stderr
    assert len(read_manifest(root / "manifest.jsonl")[0]) == 12
    assert (root / "manifest.jsonl.bad.txt").read_text() == (
        "videos/Alpha/v_Alpha_g01_c01.avi\t0 frames\tthe file is empty\n"
    )
    words = tiny(f"data.root={root}", f"data.manifest={root}/manifest.jsonl", "train.batch_size=3")
    done = tool("train_net", "--cfg", PAGE, *words, "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 of 8 train videos are bad" in done.stderr


def test_a_tampered_manifest_stops_training_before_it_begins(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    tool("prepare", "scan", f"data.root={root}", "--output", "m.jsonl", cwd=tmp_path)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(manifest.read_text().replace('"frames": 20', '"frames": 2000', 1))
    done = tool(
        "train_net",
        "--cfg",
        PAGE,
        *tiny(f"data.root={root}", f"data.manifest={manifest}"),
        "--output-dir",
        "out",
        cwd=tmp_path,
    )
    assert done.returncode == 1 and "changed or cut after its scan" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out/checkpoints").exists()


def test_an_empty_manifest_option_means_none(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    done = tool(
        "train_net",
        "--cfg",
        PAGE,
        *tiny(f"data.root={root}", "data.manifest="),
        "--dry-run",
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "manifest: ''" in done.stdout


def test_resize_then_train_on_the_small_files(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    done = tool(
        "prepare",
        "resize",
        f"data.root={root}",
        "--output",
        "small",
        "--short-side",
        32,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "data.root=small has every file, verified" in done.stderr, (
        done.stderr
    )
    done = tool(
        "train_net", "--cfg", PAGE, *tiny("data.root=small"), "--output-dir", "out", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resize"], "resize needs --output"),
        (["resize", "--output", "data"], "lie in each other"),
        (["scan", "data.root=nowhere"], "no data root nowhere"),
        (["scan", "data.name=nothing"], "data.name: unknown name 'nothing'"),
        (["resize", "--output", "b", "--gop", "0"], "--gop 0"),
        (["resize", "--output", "b", "--quality", "99"], "--quality 99"),
        (["resize", "--output", "b", "--short-side", "1"], "--short-side 1"),
        (["scan", "--workers", "0"], "--workers"),
        (["scan", "--timeout", "0"], "--timeout"),
        (["scan", "--timeout", "inf"], "--timeout"),
    ],
)
def test_mistakes_are_reported_in_one_line(tmp_path, words, message):
    tiny_ucf101(tmp_path / "data", train=1, test=1)
    given = [] if any(word.startswith("data.root=") for word in words) else ["data.root=data"]
    done = tool("prepare", *words, *given, cwd=tmp_path)
    assert (
        done.returncode in (1, 2) and message in done.stderr and "Traceback" not in done.stderr
    ), done.stderr


def test_resize_reports_files_that_it_could_not_copy(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    (root / "videos/Beta/v_Beta_g02_c01.avi").write_bytes(b"x")
    done = tool("prepare", "resize", f"data.root={root}", "--output", "small", cwd=tmp_path)
    assert done.returncode == 1 and "1 of 12 files could not be written, first" in done.stderr
    assert sum(path.stat().st_size > 0 for path in (tmp_path / "small").rglob("*.avi")) == 11


def test_ctrl_c_keeps_scanned_rows_and_leaves_no_process(tmp_path):
    """As in a terminal: a signal to the whole process group, while every probe is slow."""
    script = """
import runpy, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from vidrobust.data import scan
probe = scan.__globals__["probe"]
def slow(path, **options):
    print(path, flush=True)
    time.sleep(0.2)
    return probe(path)
scan.__globals__["probe"] = slow
import os, socket
from vidrobust.data import isolation as child
control, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
pid = os.fork()
if pid == 0:
    control.close()
    child.serve_nursery(there.detach())
there.close()
child._nursery.adopt(pid, control)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    root = tiny_ucf101(tmp_path / "data", train=12, test=8)
    (tmp_path / "slow.py").write_text(script)
    words = ["scan", f"data.root={root}", "--workers", "2"]
    run = Process(
        ["slow.py", REPO / "datasets/prepare.py", *words],
        cwd=tmp_path,
        stdout=PIPE,
        start_new_session=True,
    )
    for _ in range(8):
        assert run.stdout.readline(), run.stderr.read()
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=30)
    assert run.returncode == 130 and "Traceback" not in err, err
    assert 5 <= len(read_manifest(root / "manifest.jsonl")[0]) <= 10
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)


@needs_ucf101_mini
def test_the_real_videos_are_whole(tmp_path):
    root = SHARED / "ucf101_mini"
    done = tool(
        "prepare", "scan", f"data.root={root}", "--output", tmp_path / "m.jsonl", cwd=tmp_path
    )
    assert "151 files, 0 bad, 0 damaged but used" in done.stderr, done.stderr
    rows, _ = read_manifest(tmp_path / "m.jsonl")
    assert all(
        row["width"] == 320 and row["height"] == 240 and row["frames"] > 28 for row in rows.values()
    )


def test_there_is_one_corrupted_copy_per_corruption_and_severity(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    words = [
        "eval.corruption.names=[contrast,reverse_sampling]",
        "eval.corruption.severities=[1,5]",
    ]
    done = tool(
        "prepare",
        "corrupt",
        f"data.root={root}",
        "--output",
        "c",
        *words,
        "--workers",
        2,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    copies = sorted(p.relative_to(tmp_path).as_posix() for p in (tmp_path / "c").glob("*/*"))
    assert copies == [
        "c/contrast/1",
        "c/contrast/5",
        "c/reverse_sampling/1",
        "c/reverse_sampling/5",
    ]
    name = "videos/Alpha/v_Alpha_g01_c01.avi"
    pale = [
        read_frames(folder / name, np.arange(20)).std((1, 2, 3)).mean()
        for folder in (root, tmp_path / "c/contrast/1", tmp_path / "c/contrast/5")
    ]
    assert pale[1] == pytest.approx(0.4 * pale[0], rel=0.1) and pale[2] == pytest.approx(
        0.05 * pale[0], rel=0.3
    )
    backward = read_numbers(read_frames(tmp_path / "c/reverse_sampling/1" / name, np.arange(20)))
    assert backward == [18 - 2 * (n % 10) for n in range(20)]
    done = tool(
        "train_net",
        "--cfg",
        PAGE,
        *tiny("data.root=c/contrast/1"),
        "--output-dir",
        "out",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    again = tool(
        "prepare", "corrupt", f"data.root={root}", "--output", "c", *words, "seed=1", cwd=tmp_path
    )
    assert again.returncode == 1 and "holds files of another encoding" in again.stderr


def test_corrupted_copies_of_motionshapes_are_read_as_ucf101(tmp_path):
    drawn = [
        f"data.motionshapes.{word}"
        for word in ("train_per_class=2", "test_per_class=1", "frames=8", "size=24")
    ]
    words = [
        "data.name=motionshapes",
        "data.root=drawn",
        *drawn,
        "data.frames=4",
        "data.size=16",
        "data.short_side=16",
    ]
    done = tool(
        "prepare",
        "corrupt",
        *words,
        "--output",
        "c",
        "eval.corruption.names=[fog]",
        "eval.corruption.severities=[3]",
        cwd=tmp_path,
    )
    assert (
        done.returncode == 0
        and "data.name=ucf101 data.root=c/fog/3 has every file, verified" in done.stderr
    )
    cfg = config.loads("", ["data.name=ucf101", f"data.root={tmp_path}/c/fog/3"])
    assert len(all_records(cfg.data)) == 8 * 4, "training videos, and two lists of test videos"


def test_a_bad_file_is_bad_in_every_copy_and_the_others_are_made(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    (root / "videos/Alpha/v_Alpha_g01_c01.avi").write_bytes(b"no video")
    done = tool(
        "prepare",
        "corrupt",
        f"data.root={root}",
        "--output",
        "c",
        "eval.corruption.names=[contrast,freeze]",
        "eval.corruption.severities=[5]",
        cwd=tmp_path,
    )
    assert (
        done.returncode == 1 and "2 copies are incomplete; the first: 1 of 12 files" in done.stderr
    )
    for name in ("contrast", "freeze"):
        sizes = sorted(
            p.stat().st_size > 0 for p in (tmp_path / "c" / name / "5/videos").glob("*/*.avi")
        )
        assert sizes == [False] + [True] * 11


def test_corrupted_images_and_folders_of_frames(tmp_path):
    frames = counting_frames(6, 32)
    for split in ("train", "test"):
        for kind, folder in (("images", f"{split}/a"), ("frames", f"{split}/a/clip")):
            (tmp_path / kind / folder).mkdir(parents=True)
            for number, frame in enumerate(frames):
                Image.fromarray(frame).save(tmp_path / kind / folder / f"{number:03d}.png")
    for kind, name, words in (
        ("images", "image_folder", ["brightness"]),
        ("frames", "frame_folder", ["reverse_sampling"]),
    ):
        done = tool(
            "prepare",
            "corrupt",
            f"data.name={name}",
            f"data.root={kind}",
            "--output",
            f"{kind}_c",
            f"eval.corruption.names=[{words[0]}]",
            "eval.corruption.severities=[1]",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
    image = np.asarray(Image.open(tmp_path / "images_c/brightness/1/test/a/003.png"))
    assert (image == corrupt(frames[3:4], "brightness", 1, np.random.default_rng(0))[0]).all()
    back = read_frames(tmp_path / "frames_c/reverse_sampling/1/test/a/clip", np.arange(6))
    assert read_numbers(back) == [4, 2, 0, 4, 2, 0]


def test_corrupt_refuses_wrong_options(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    for words, reason in (
        (["--output", "c"], "corrupt needs eval.corruption.names="),
        (["eval.corruption.names=[fog]"], "corrupt needs --output FOLDER"),
        (["--output", "c", "eval.corruption.names=[fogg]"], "unknown corruption 'fogg'"),
        (["--output", "c", "eval.corruption.names=[fog]", "--quality", "60"], "--quality 60"),
    ):
        done = tool("prepare", "corrupt", f"data.root={root}", *words, cwd=tmp_path)
        assert done.returncode == 1 and reason in done.stderr and "Traceback" not in done.stderr, (
            done.stderr
        )
    assert not (tmp_path / "c").exists()


def test_written_textures_are_used_as_negatives_in_training(tmp_path):
    root = tiny_ucf101(tmp_path / "data")
    words = [f"data.root={root}", "--output", "t", "--workers", 2]
    done = tool("prepare", "texture", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    name = "videos/Beta/v_Beta_g06_c01.avi"
    texture, source = (
        read_frames(folder / name, np.arange(20)) for folder in (tmp_path / "t", root)
    )
    assert texture.shape == source.shape == (20, 64, 64, 3)
    assert (
        abs(texture[0].mean() - source[0].mean()) < 60
        and abs(texture[0].astype(int) - source[0]).mean() > 20
    )
    (tmp_path / "t" / name).unlink()  # as after an interruption
    assert tool("prepare", "texture", *words, cwd=tmp_path).returncode == 0
    assert (read_frames(tmp_path / "t" / name, np.arange(20)) == texture).all()
    again = tool("prepare", "texture", *words, "--kind", "still", cwd=tmp_path)
    assert again.returncode == 1 and "holds files of another encoding" in again.stderr
    words = ["method.negatives.names=[texture,patch]", f"data.root={root}"]
    done = tool(
        "train_net",
        "--cfg",
        PAGE,
        *tiny("data.twins=t", *words),
        "--output-dir",
        "out",
        cwd=tmp_path,
    )
    assert (
        done.returncode == 0 and "negative_cosine" in (tmp_path / "out/metrics.jsonl").read_text()
    ), done.stderr
    done = tool("train_net", "--cfg", PAGE, *tiny(*words), "--output-dir", "no", cwd=tmp_path)
    assert (
        done.returncode == 1
        and "data.twins is empty" in done.stderr
        and not (tmp_path / "no").exists()
    )


def test_textures_of_images_and_folders_of_frames(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3)).astype(np.uint8)
    for split in ("train", "test"):
        for kind, folder in (("images", f"{split}/a"), ("frames", f"{split}/a/clip")):
            (tmp_path / kind / folder).mkdir(parents=True)
            for number, frame in enumerate(frames):
                Image.fromarray(frame).save(tmp_path / kind / folder / f"{number:03d}.png")
    for kind, name in (("images", "image_folder"), ("frames", "frame_folder")):
        done = tool(
            "prepare",
            "texture",
            f"data.name={name}",
            f"data.root={kind}",
            "--output",
            f"{kind}_t",
            "--patch",
            64,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
    textures = [
        np.asarray(Image.open(tmp_path / f"images_t/{split}/a/003.png"))
        for split in ("train", "test")
    ]
    assert textures[0].shape == (32, 32, 3) and (textures[0] != textures[1]).any(), (
        "each file draws its own"
    )
    assert read_frames(tmp_path / "frames_t/test/a/clip", np.arange(6)).shape == (6, 32, 32, 3)
