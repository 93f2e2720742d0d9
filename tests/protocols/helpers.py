"""Tiny data sets with two splits, and a trained run on the first one."""

from tests.helpers import tiny, tiny_hmdb51, tiny_ucf101, tool


def place_with_run(top):
    """Make UCF101 of two splits in `data`, HMDB51 in `hmdb51`, and a run on split 1 in `run`."""
    root = tiny_ucf101(top / "data")
    lists = root / "ucfTrainTestlist"
    # split 2 tests what split 1 trains on: groups 1 and 2
    videos = sorted(path.relative_to(root / "videos") for path in root.glob("videos/*/*.avi"))
    ids = {"Alpha": 3, "Beta": 6}
    test = [video for video in videos if "_g01" in video.name or "_g02" in video.name]
    lines = [f"{video} {ids[video.parts[0]]}\n" for video in videos if video not in test]
    (lists / "trainlist02.txt").write_text("".join(lines))
    (lists / "testlist02.txt").write_text("".join(f"{video}\n" for video in test))
    tiny_hmdb51(top / "hmdb51")
    (top / "config.yaml").write_text("data: {root: data}")
    words = tiny("eval.enabled=false")
    done = tool("train_net", "--cfg", "config.yaml", "--output-dir", "run", *words, cwd=top)
    assert done.returncode == 0, done.stderr
    return top
