"""The script for a GPU, rehearsed on a CPU."""

import json

import torch

from tests.helpers import tool
from vidrobust.benchmarks import gpu_switches

QUICK = {
    "fp32": ("train.amp=fp32", "train.channels_last=false"),
    "bf16, channels last": ("train.amp=bf16", "train.channels_last=true"),
}


def test_every_measurement_has_a_number_on_a_cpu(tmp_path, monkeypatch):
    # compilation takes minutes; whoever rehearses by hand sees it
    monkeypatch.setattr(gpu_switches, "STEPS", {**QUICK, "bf16": ("train.amp=bf16",)})
    done = tool(
        *("gpu_check", "--output", tmp_path / "gpu.json", "--small", "--rounds", 1),
        *("--device", "cpu"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["matrix_tflops"].keys() == {"fp32", "bf16"}
    assert not [name for name, result in found.items() if "error" in str(result)]
    steps = [result for name, result in found.items() if name.startswith("step: ")]
    assert len(steps) == 2 * 4
    assert all(step["s"] > 0 and step["of_matrix_rate"] > 0 for step in steps)
    assert "left_out" in found["PGD-20 as CUDA graph: r2plus1d_10, 4 x 32"]
    assert found["PGD-20 of 16 clips"]["bf16"]["clips_per_s"] > 0
    # operations of a step: 3 forward passes' worth for each of 8 clips, of a known network
    assert steps[0]["tflops"] * steps[0]["s"] * 1e12 > 1e6


def test_one_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    def parts(*args, **kwargs):
        yield "first", lambda: 1 / 0
        yield "second", lambda: {"s": 2}

    monkeypatch.setattr(gpu_switches, "_parts", parts)
    device = torch.device("cpu")
    options = {"small": True, "rounds": 1}
    gpu_switches.check_gpu(tmp_path / "a.json", device, **options, limit_s=100)
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["first"] == {"error": "ZeroDivisionError: division by zero"}
    assert found["second"] == {"s": 2}
    gpu_switches.check_gpu(tmp_path / "b.json", device, **options, limit_s=-1)
    assert json.loads((tmp_path / "b.json").read_text())["second"] == {"left_out": "after -1 s"}
