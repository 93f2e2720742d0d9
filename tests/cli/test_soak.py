"""A short soak: tools on many links within limits, and a run that is killed again and again."""

import pytest

from vidrobust.cli import soak

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("soak")


def test_what_a_tool_takes_does_not_grow_with_the_number_of_videos(out, monkeypatch):
    """Features were extracted with every batch, two open files per video, held to the end."""
    limits = {"files": 64, "memory_mib": 4000, "shm_mib": 16}
    wanted = ("train, kNN, probe, geometry", "features of the training list")
    others = ("scan", "bias, shift, sensitivity")
    whole = soak.size_commands
    monkeypatch.setattr(
        soak, "size_commands", lambda *a: [c for c in whole(*a) if c[0] in (*others, *wanted)]
    )
    peaks = {peak.name: peak for peak in soak.soak_size(out, "short", None, **limits)}
    for peak in peaks.values():
        assert peak.status == 0, peak.tail
    assert all(peaks[name].files < 64 and peaks[name].shm <= 16 for name in wanted)


def test_a_run_that_is_killed_leaves_what_an_undisturbed_one_leaves(out, capsys):
    differ = soak.soak_kills(out, kills=1, seed=3, longest_s=10, steps=40)
    printed = capsys.readouterr().out
    assert differ == 0, printed
    assert "1 kills; files that differ: none" in printed and "outlived" not in printed, printed
