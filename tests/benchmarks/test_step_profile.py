"""Phases of training steps are timed, beside the bare passes of the model."""

import time

import pytest
import torch

from tests.helpers import tiny, tiny_ucf101, tool
from vidrobust import config
from vidrobust.benchmarks.step_profile import measure_profile
from vidrobust.utils import phases
from vidrobust.utils.phases import PhaseClock, phase, timing


def test_a_phase_is_timed_without_those_within_it(monkeypatch):
    now = 0.0
    monkeypatch.setattr(phases.time, "perf_counter", lambda: now)
    clock = PhaseClock(torch.device("cpu"))
    called = []
    clock.before["data"] = lambda: called.append(dict(clock.seconds))
    with timing(clock):
        now += 1
        with phase("data"):
            now += 2
        with pytest.raises(KeyError), phase("forward"):
            now += 4
            with phase("attack"):
                now += 8
            now += 16
            raise KeyError
        now += 32
        clock.charge()
    with phase("data"):  # no clock runs any more
        now += 64
    assert clock.seconds == {"": 33, "data": 2, "forward": 20, "attack": 8}
    assert called == [{"": 1}]


@pytest.mark.parametrize("adversary", ["none", "clae"])
def test_the_profile_of_a_run_has_its_phases_and_their_sum_is_the_step(tmp_path, adversary):
    words = tiny(f"data.root={tiny_ucf101(tmp_path / 'data')}", "train.batch_size=2")
    cfg = config.loads("", [*words, f"method.adversary.name={adversary}", "device=cpu"])
    start = time.perf_counter()
    profile = measure_profile(cfg, rounds=2)
    seconds = time.perf_counter() - start
    assert len(profile.steps) == 2 * 6 and len(profile.passes) == 2 * 3
    expected = {"", "data", "transfer", "views", "forward", "backward", "optimizer"}
    for step in profile.steps:
        assert step.keys() == expected | ({"attack"} if adversary == "clae" else set())
        assert min(step.values()) > 0
    assert sum(profile.totals) + sum(profile.passes) < seconds
    assert profile.ratio > 0 and not profile.bf16


def test_options_without_a_lower_bound_are_refused(tmp_path):
    words = tiny(f"data.root={tmp_path}", "method.adversary.name=clae")
    done = tool(*("benchmark", "profile", *words, "method.adversary.schedule=linear"), cwd=tmp_path)
    assert done.returncode == 1 and "benchmark.py profile: the lower bound is" in done.stderr
