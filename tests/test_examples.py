"""The examples run as they are, on a CPU and with small sizes."""

import os
import subprocess
import sys

import numpy as np

from tests.helpers import REPO, counting_video


def run_example(name, *args, cwd):
    """Run a script of examples/ as a user does, and return its output."""
    done = subprocess.run(
        [sys.executable, str(REPO / "examples" / name), *map(str, args)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_of_attacks_lowers_the_accuracy_within_the_budget(tmp_path):
    lines = run_example("attack_your_model.py", "--clips", 4, cwd=tmp_path).splitlines()
    assert lines[0] == "clean accuracy 1.00"
    for line, attack in zip(lines[1:], ("PGD", "AutoAttack"), strict=True):
        assert line.startswith(f"{attack}: accuracy 0.")
        # 4/255 = 0.0157
        assert line.endswith("of 0.0157")


def test_the_example_of_features_writes_a_row_per_video(tmp_path):
    for name in ("a.avi", "more/b.avi"):
        counting_video(tmp_path / "videos" / name, 20)
    sizes = ["--frames", 2, "--size", 32, "--width", 4]
    run_example("extract_features.py", tmp_path / "videos", *sizes, cwd=tmp_path)
    with np.load(tmp_path / "features.npz") as saved:
        assert saved["uids"].tolist() == ["a.avi", "more/b.avi"]
        assert saved["features"].shape[:2] == (2, 2)
        assert np.isfinite(saved["features"]).all()


def test_the_example_of_simclr_takes_steps_with_finite_losses(tmp_path):
    sizes = ["--steps", 3, "--batch-size", 8, "--videos", 2]
    output = run_example("simclr_in_ten_lines.py", *sizes, "--root", "shapes", cwd=tmp_path)
    losses = [float(line.rpartition(" ")[2]) for line in output.splitlines()]
    assert len(losses) == 3
    assert np.isfinite(losses).all()


def test_examples_are_short():
    paths = sorted((REPO / "examples").glob("*.py"))
    assert len(paths) == 3
    for path in paths:
        assert len(path.read_text().splitlines()) <= 60, path.name
        assert f"[{path.name}]" in (REPO / "examples/README.md").read_text()
