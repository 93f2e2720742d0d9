"""A folder holds one evaluation of one process, and replaced results are named in a warning."""

import json

import pytest

from tests.helpers import another_process
from vidrobust import config
from vidrobust.evaluation.measured_model import checkpoint_name
from vidrobust.evaluation.results import claim, identify
from vidrobust.utils.errors import UserError

STATE = {"step": 3, "model": {}}


def _claim(out, *words, state=STATE, overwrite=False):
    cfg = config.loads("", list(words))
    with claim(
        out, identify(cfg, checkpoint_name(cfg, state), [], [], []), cfg, overwrite=overwrite
    ):
        pass


def test_the_same_one_goes_on_whatever_workers_or_folders(tmp_path):
    _claim(tmp_path / "a", "data.workers=1")
    (tmp_path / "a/results.jsonl").write_text("{}\n")
    _claim(tmp_path / "a", "data.workers=3", "data.root=elsewhere", "eval.name=other")
    assert (tmp_path / "a/results.jsonl").is_file()


@pytest.mark.parametrize(
    "name", ["results.jsonl", "results.rank1.jsonl", "summary.json", "features.pt"]
)
def test_another_is_refused_with_the_options_that_differ_and_loses_nothing(tmp_path, name):
    _claim(tmp_path, "eval.suite=pgd")
    (tmp_path / name).write_text("{}\n")
    (tmp_path / "inner").mkdir()
    others = (
        "notes.txt",
        "inner/summary.json",
        "results_old.jsonl",
        "results.rank1_old.jsonl",
        "timing_old.jsonl",
    )
    for kept in others:
        (tmp_path / kept).write_text("x")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    with pytest.raises(
        UserError, match=r"of other options \(eval.suite, eval.threats\); set eval.name=NAME"
    ):
        _claim(tmp_path, "eval.suite=fmn", "eval.threats=[linf-1/255]")
    with pytest.raises(UserError, match="of other checkpoint; set"):
        _claim(tmp_path, "eval.suite=pgd", state=STATE | {"step": 4})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == before
    _claim(tmp_path, "eval.suite=fmn", overwrite=True)  # its own files, and no one else's
    left = sorted(p.name for p in tmp_path.rglob("*.*") if not p.name.endswith("_old.jsonl"))
    assert left == [".lock", "environment.json", "identity.json", "notes.txt", "summary.json"]
    assert all((tmp_path / kept).is_file() for kept in others)
    assert json.loads((tmp_path / "identity.json").read_text())["options"]["eval.suite"] == "fmn"


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="holds other files and no evaluation"):
        _claim(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").is_file()


def test_where_another_process_evaluates_it_is_refused_until_that_is_killed(tmp_path):
    cfg = config.loads("", [])
    with another_process(
        lambda: claim(
            tmp_path / "out",
            identify(cfg, checkpoint_name(cfg, STATE), [], [], []),
            cfg,
            overwrite=False,
        )
    ):
        (tmp_path / "out/results.jsonl").write_text("{}\n")
        for words in ([], ["seed=1"]):
            with pytest.raises(
                UserError,
                match="another process evaluates in .*/out; wait for it or stop it, or set",
            ):
                _claim(tmp_path / "out", *words, overwrite=True)
            assert (tmp_path / "out/results.jsonl").is_file()
    # as if it had been killed before it said what it is
    for name in ("identity.json", "environment.json", "results.jsonl"):
        (tmp_path / "out" / name).unlink()
    _claim(tmp_path / "out")
    assert (tmp_path / "out/identity.json").is_file()
