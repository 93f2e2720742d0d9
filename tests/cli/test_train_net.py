"""The command of training, before it trains."""

from argparse import Namespace

import pytest

from vidrobust.cli import train_net


@pytest.mark.parametrize(
    ("saved", "message"), [(True, "continues from its last"), (False, "begins again: it has no")]
)
def test_a_restart_by_torchrun_says_where_it_begins(monkeypatch, caplog, tmp_path, saved, message):
    monkeypatch.setattr(train_net.run, "is_of_this_launch", lambda out: True)
    monkeypatch.setattr(train_net.checkpoint, "newest_sound", lambda folder: saved)
    args = Namespace(resume=None, overwrite=False)
    with caplog.at_level("WARNING", "vidrobust"):
        train_net._continue_after_restart(args, tmp_path)
    assert f"restarted by torchrun: {tmp_path} {message} checkpoint" in caplog.text
    assert (args.resume, args.overwrite) == (("", False) if saved else (None, True))
