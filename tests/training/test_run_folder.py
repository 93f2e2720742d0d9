"""A folder is one process's while that trains there, and goes with it, however that ends."""

import json
import os
import shutil
import time
from contextlib import contextmanager

import pytest

from tests.helpers import another_process, tiny, tool
from vidrobust import config
from vidrobust.training.loop import train
from vidrobust.training.run_folder import open_output
from vidrobust.utils.atomic_files import held
from vidrobust.utils.errors import UserError


@contextmanager
def _training(out):
    with open_output(out, config.loads("", []), overwrite=False):
        if os.fork() == 0:  # as a process that loads data and outlives it for a while
            time.sleep(10)
            os._exit(0)
        yield


def test_a_folder_where_another_process_trains_is_refused_and_kept(ucf, tmp_path):
    out = tmp_path / "out"
    cfg = config.loads("", tiny(f"data.root={ucf}", "train.max_steps=1"))
    with another_process(lambda: _training(out)):
        (out / "kept").write_text("")
        for overwrite in (True, False):
            with pytest.raises(
                UserError, match="another process trains in .*/out; wait for it or stop it"
            ):
                train(cfg, out, overwrite=overwrite)
            assert (out / "kept").is_file() and not (out / "log.txt").is_file()
            assert (out / "config.yaml").read_text() == config.to_yaml(config.loads("", []))
    train(cfg, out, overwrite=True)
    assert (out / "kept").is_file(), "what no run has written stays"
    assert (out / "backbone.pt").is_file()
    train(cfg, out, overwrite=True)  # nothing is held any more


@contextmanager
def _holding(lock):
    with held(lock, "{}"):
        yield


@pytest.mark.parametrize("name", ["eval/busy/.lock", "features/test.npz.partial/.lock"])
def test_what_another_process_measures_is_not_overwritten(ucf, tmp_path, name):
    """It was deleted under an evaluation that then had no rows."""
    out = tmp_path / "out"
    cfg = config.loads("", tiny(f"data.root={ucf}", "train.max_steps=1", "eval.enabled=false"))
    train(cfg, out)
    lock = out / name
    lock.parent.mkdir(parents=True)
    with another_process(lambda: _holding(lock)):
        with pytest.raises(UserError, match=f"another process writes into .*{lock.parent.name}"):
            train(cfg, out, overwrite=True)
        assert lock.is_file() and (out / "backbone.pt").is_file()
    train(cfg, out, overwrite=True)


WORDS = tiny("eval.enabled=false", "train.max_steps=1")


@pytest.fixture
def place(ucf, tmp_path):
    """A folder with a run in it, evaluated, and files of its owner's everywhere."""
    (tmp_path / "page.yaml").write_text(f"data: {{root: {ucf}}}")
    done = _overwrite(tmp_path, "out", "eval.enabled=true", fresh=True)
    assert done.returncode == 0, done.stderr
    for name in OWN:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("mine")
    return tmp_path


OWN = (
    "notes.txt",
    "checkpoints/step_best.pt",
    "eval/pgd/results_old.jsonl",
    "eval/pgd/clips/mine.png",
    "eval/mine/a.csv",
    "tensorboard/mine.txt",
    "features/mine.npz",
    "thesis/config.yaml",
)


def _overwrite(top, out, *words, fresh=False):
    names = {word.split("=")[0] for word in words}
    options = [word for word in WORDS if word.split("=")[0] not in names]
    arguments = [
        "--cfg",
        top / "page.yaml",
        "--output-dir",
        out,
        *([] if fresh else ["--overwrite"]),
    ]
    return tool("train_net", *arguments, *options, *words, cwd=top)


def _refused(top, before, message, out="out", *words):
    done = _overwrite(top, out, *words)
    lines = [line for line in done.stderr.splitlines() if " I " not in line[:20]]
    assert done.returncode == 1 and len(lines) == 1 and message in lines[0], done.stderr
    assert _files(top) == before


def _files(top):
    return {path: path.read_bytes() for path in top.rglob("*") if path.is_file()}


def test_overwrite_deletes_what_the_run_has_written_and_nothing_else(place):
    out = place / "out"
    done = _overwrite(place, "out")
    assert done.returncode == 0, done.stderr
    left = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {name for name in OWN if (out / name).read_text() == "mine"} == set(OWN)
    # what shows the next evaluation that the folder is one's, so that it is not refused after
    # training
    claims = {"eval/pgd/identity.json", "eval/pgd/.lock"}
    assert not any(name.startswith("eval/pgd/") for name in left - set(OWN) - claims)
    assert not any(name.startswith("eval/pgd/") for name in OWN) or "eval/pgd/identity.json" in left
    assert f"--overwrite: {len(OWN)} files in out are not those of a run and stay" in done.stderr


@pytest.mark.parametrize("page", ["model: gpt\n", "data: {root: x}\n", "- 1\n", "not: [yaml", ""])
def test_a_folder_with_a_config_of_another_program_is_not_overwritten(ucf, tmp_path, page):
    (tmp_path / "page.yaml").write_text(f"data: {{root: {ucf}}}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.yaml").write_text(page)
    (tmp_path / "out/metrics.jsonl").write_text("precious")
    _refused(tmp_path, _files(tmp_path), "out is not the folder of a run")
    (tmp_path / "out/env.json").write_text(json.dumps({"vidrobust": "0.1"}))
    _refused(
        tmp_path, _files(tmp_path), "out is not the folder of a run (config.yaml is not one's)"
    )


def test_overwrite_refuses_links_the_working_directory_and_what_is_above_it(place, monkeypatch):
    (place / "link").symlink_to(place / "out")
    before = _files(place)
    _refused(place, before, "link is a link", "link")
    (place / "out/deep").mkdir()
    for inside in ("out", "out/deep"):
        done = tool(
            "train_net",
            "--cfg",
            place / "page.yaml",
            "--output-dir",
            place / "out",
            "--overwrite",
            *WORDS,
            cwd=place / inside,
        )
        assert done.returncode == 1 and "is the working directory, or above it" in done.stderr
        assert _files(place) == before


def test_overwrite_refuses_a_link_in_the_place_of_checkpoints(place):
    (place / "out/checkpoints").rename(place / "elsewhere")
    (place / "out/checkpoints").symlink_to(place / "elsewhere")
    _refused(place, _files(place), "checkpoints is a link")


@pytest.mark.parametrize("key", ["data.root", "model.weights", "eval.shift.root"])
def test_overwrite_refuses_a_folder_that_holds_what_the_run_reads(ucf, place, key):
    shutil.copytree(ucf, place / "out/data")
    value = {"model.weights": "out/backbone.pt"}.get(key, "out/data")
    words = [f"{key}={value}"] + (["eval.shift.name=ucf101"] if key == "eval.shift.root" else [])
    _refused(place, _files(place), f"{key}={value} lies inside out", "out", *words)


def test_overwrite_takes_a_run_that_was_killed_before_it_described_itself(ucf, tmp_path):
    (tmp_path / "page.yaml").write_text(f"data: {{root: {ucf}}}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/env.json").write_text("")
    assert _overwrite(tmp_path, "out").returncode == 0
