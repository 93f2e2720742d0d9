"""Steps of several sizes are timed, with the operations that arithmetic says."""

import pytest
import torch

from vidrobust import config
from vidrobust.benchmarks.step_growth import measure_growth, sizes_of
from vidrobust.benchmarks.steps import configured
from vidrobust.cli.document import _units, study_costs
from vidrobust.methods import ADVERSARIES, METHODS
from vidrobust.models.complexity import model_complexity

TINY = ["model.backbone=r2plus1d_10", "model.width=4", "model.hidden=8", "model.dim=8"]
WORDS = [*TINY, "data.frames=8", "data.size=32", "train.batch_size=2", "train.amp=fp32"]
CPU = torch.device("cpu")


def test_each_size_is_timed_in_each_round():
    sizes = sizes_of(config.loads("", WORDS))[:3]
    measure_growth(sizes, 2, CPU)
    assert [len(size.seconds) for size in sizes] == [2, 2, 2]
    assert min(size.median for size in sizes) > 0
    assert [size.times for size in sizes] == [1, 2, 4]


def test_sizes_have_the_operations_that_they_are_compared_with():
    cfg = config.loads("", WORDS)
    model = configured(cfg, "simclr", "none", CPU).model
    base, *others = sizes_of(cfg)

    def operations(size):
        options = size.cfg.method
        if size.adversary != "none":
            units = _units(ADVERSARIES["pgd"].cost("supervised"), options.adversary.steps)
        else:
            units = _units(METHODS[options.name].cost, 0)
        data = size.cfg.data
        clip = model_complexity(model, (3, data.frames, data.size, data.size)).flops_per_clip
        return units * size.cfg.train.batch_size * clip

    for size in others:
        assert operations(size) / operations(base) == pytest.approx(size.times, rel=0.1), size.name


def test_the_table_of_costs_has_the_hours_of_measured_trainings():
    """docs/benchmarks.md has these from steps that were measured; CLAE's is predicted."""
    rows = [line.split(" | ") for line in study_costs().splitlines()]
    hours = {(row[0].strip("| `"), row[1].strip("`")): row[3:] for row in rows[2:]}
    assert [cell.strip(" |") for cell in hours["simclr", "none"]] == ["3.7", "1.4", "47"]
    assert hours["supervised", "none"][0] == "1.9"
    assert float(hours["simclr", "clae"][0]) == pytest.approx(6.9, rel=0.03)
