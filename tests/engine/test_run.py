"""A folder is one process's while that trains there, and goes with it, however that ends."""

import multiprocessing
import os
import time

import pytest

from tests.helpers import tiny
from vidrobust import config
from vidrobust.engine.loop import train
from vidrobust.engine.run import open_output
from vidrobust.errors import UserError


def _hold(out, ready):
    with open_output(out, config.loads("", []), overwrite=False):
        if os.fork() == 0:  # as a process that loads data and outlives it for a while
            time.sleep(10)
            os._exit(0)
        ready.set()
        time.sleep(60)


def test_a_folder_where_another_process_trains_is_refused_and_kept(ucf, tmp_path):
    out, forked = tmp_path / "out", multiprocessing.get_context("fork")
    ready = forked.Event()
    holder = forked.Process(target=_hold, args=(out, ready), daemon=True)
    holder.start()
    assert ready.wait(60)
    (out / "kept").write_text("")
    cfg = config.loads("", tiny(f"data.root={ucf}", "train.max_steps=1"))
    for overwrite in (True, False):
        with pytest.raises(UserError, match="another process trains in .*/out; wait for it or stop it"):
            train(cfg, out, overwrite=overwrite)
        assert (out / "kept").is_file() and not (out / "log.txt").is_file()
        assert (out / "config.yaml").read_text() == config.to_yaml(config.loads("", []))
    holder.kill()
    holder.join()
    train(cfg, out, overwrite=True)
    assert not (out / "kept").exists() and (out / "backbone.pt").is_file()
    train(cfg, out, overwrite=True)  # nothing is held any more
