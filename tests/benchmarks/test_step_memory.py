from tests.helpers import tool
from vidrobust import config
from vidrobust.benchmarks.step_memory import measure_step

SMALL = ["model.width=16", "model.dim=8", "data.size=32"]


def test_a_micro_batch_takes_a_part_of_the_memory_of_the_whole_batch():
    cfg = config.loads("", ["model.backbone=resnet18", "data.frames=1", *SMALL])
    whole, part = (measure_step(cfg, 384, size) for size in (0, 12))
    used = [found.peak - found.start for found in (whole, part)]
    # a part of the activations, and what any step needs
    assert 0 < used[1] < 0.7 * used[0]
    assert whole.seconds > 0 and part.seconds > 0


def test_batches_that_are_no_numbers_are_refused(tmp_path):
    done = tool("benchmark", "memory", "--batches", "64,x", cwd=tmp_path)
    assert done.returncode == 1 and "other numbers at least 1" in done.stderr
