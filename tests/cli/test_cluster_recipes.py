"""The recipe of docs/cluster.md for several nodes, with a launcher for each on this machine."""

import re
import shlex
import socket
import subprocess

import pytest

from tests.helpers import REPO, tiny
from tests.processes import LAUNCHER, Process
from tests.training.helpers import equal, two_ranks
from vidrobust import checkpoint
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError


def _recipe(endpoint: str) -> list[str]:
    """Return the options of torchrun that the page gives, for one rank on each node."""
    text = (REPO / "docs/cluster.md").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"(?m)^    torchrun (.* tools/train_net.py .*)$", text)
    options = shlex.split(line.split(" tools/")[0])
    own = {"--nproc_per_node": "1", "--rdzv-endpoint": endpoint, "--max-restarts": "0"}
    names = [option.split("=")[0] for option in options]
    assert {"--nnodes", "--rdzv-backend", "--rdzv-id", *own} <= set(names)
    pairs = dict(option.split("=") for option in options) | own
    return [f"{name}={value}" for name, value in pairs.items()]


def _launch(place, *nodes: str):
    """Start a launcher for each node, with an option of its own; return (status, errors) of each.

    The first one begins alone: nodes do not start at the same moment.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    words = tiny("eval.enabled=false", "device=cpu")
    launchers = [
        Process(
            [
                *LAUNCHER,
                *_recipe(endpoint),
                REPO / "tools/train_net.py",
                *("--cfg", "page.yaml", "--output-dir", "out", *words, node),
            ],
            cwd=place,
        )
        for node in nodes
    ]
    try:
        return [(each.communicate(timeout=170)[1], each.wait()) for each in launchers]
    finally:
        for each in launchers:
            each.kill()


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (130, True)])
def test_the_script_of_the_page_ends_with_the_status_of_its_command(tmp_path, status, requeued):
    text = (REPO / "docs/cluster.md").read_text()
    script = re.search(r"(?m)^    #SBATCH --signal.*\n(    .*\n)+", text)
    commands = f'srun() {{ return {status}; }}\nscontrol() {{ echo "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-c", f"SLURM_JOB_ID=7\n{commands}{script[0]}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (status, "requeue 7\n" if requeued else "")


@pytest.fixture
def place(tmp_path):
    (tmp_path / "page.yaml").write_text("")
    return tmp_path


@pytest.mark.slow
def test_two_launchers_give_the_weights_of_two_ranks_of_one(place, ucf):
    for errors, status in _launch(place, f"data.root={ucf}", f"data.root={ucf}"):
        assert status == 0, errors
    (place / "one").mkdir()
    one = two_ranks(place / "one", f"data.root={ucf}")
    assert equal(checkpoint.read_checkpoint(place / "out")["model"], one["model"])


@pytest.mark.slow
def test_a_node_without_the_data_ends_all_with_one_message(place, ucf):
    ended = _launch(place, f"data.root={ucf}", "data.root=nowhere")
    errors = "".join(text for text, _ in ended)
    assert all(status for _, status in ended)
    assert errors.count("no data root nowhere: put the data set there") == 1, errors
    assert not (place / "out").exists()


def test_a_refusal_of_one_of_several_machines_names_it(monkeypatch):
    monkeypatch.setattr(distributed._ranks, "processes", [("here", 1), ("there", 2)])
    monkeypatch.setattr(socket, "gethostname", lambda: "there")
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "_gloo", lambda: None)
    shared = []
    monkeypatch.setattr(
        distributed.dist, "all_gather_object", lambda all_, own, group: shared.append(own)
    )
    with pytest.raises(UserError, match=r"^no data root x \(rank 1, on there\)$"):
        distributed._share(UserError("no data root x"))
    assert shared == ["no data root x (rank 1, on there)"]
    monkeypatch.setattr(distributed._ranks, "processes", [("there", 1), ("there", 2)])
    with pytest.raises(UserError, match=r"^no data root x$"):
        distributed._share(UserError("no data root x"))
