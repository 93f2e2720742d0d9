"""A folder is one process's while that trains there, and goes with it, however that ends."""

import os
import time
from contextlib import contextmanager

import pytest

from tests.helpers import another_process, tiny
from vidrobust import config
from vidrobust.engine.loop import train
from vidrobust.engine.run import open_output
from vidrobust.errors import UserError


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
            with pytest.raises(UserError, match="another process trains in .*/out; wait for it or stop it"):
                train(cfg, out, overwrite=overwrite)
            assert (out / "kept").is_file() and not (out / "log.txt").is_file()
            assert (out / "config.yaml").read_text() == config.to_yaml(config.loads("", []))
    train(cfg, out, overwrite=True)
    assert not (out / "kept").exists() and (out / "backbone.pt").is_file()
    train(cfg, out, overwrite=True)  # nothing is held any more
