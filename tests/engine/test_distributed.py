"""Two ranks on gloo give the gradient of one process on the whole batch."""

import os
import subprocess
import sys

import torch
from torch import nn

from tests.helpers import REPO
from vidrobust.engine import distributed
from vidrobust.methods import CLAE, SimCLR

SCRIPT = """
import sys, torch
from torch.nn.parallel import DistributedDataParallel
from vidrobust.engine import distributed
from tests.engine.test_distributed import method, batch
distributed.start("cpu")
rank, world = distributed.rank(), distributed.world()
net = method(sys.argv[2])
views, ids, labels = (part.chunk(world)[rank] for part in batch())
parallel = DistributedDataParallel(net)   # held until after the backward pass: its hooks go with it
loss = parallel(views, ids, labels)["loss"]
loss.mean().backward()
mean = distributed.mean(loss.detach().mean())
if rank == 0:
    torch.save({"loss": mean, "grads": [p.grad for p in net.parameters()]}, sys.argv[1])
distributed.stop()
"""


class _Norms(nn.Module):
    """A model whose branches are the two ways through it; no batch norm, whose statistics are a rank's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(1), nn.Linear(3 * 2 * 16, 12), nn.Tanh(), nn.Linear(12, 6))

    def forward(self, x):
        return self.layers(x)

    def use_branch(self, branch):
        from contextlib import nullcontext

        return nullcontext()


def method(adversary: str) -> SimCLR:
    return SimCLR(_Norms(), 0.3, CLAE(eps=0.05) if adversary == "clae" else None)


def batch():
    generator = torch.Generator().manual_seed(5)
    return torch.rand(8, 2, 3, 2, 4, 4, generator=generator), torch.arange(8), torch.zeros(8, dtype=torch.long)


def _two_ranks(tmp_path, adversary):
    (tmp_path / "run.py").write_text(SCRIPT)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         str(tmp_path / "run.py"), str(tmp_path / "out.pt"), adversary],
        check=True, timeout=120, cwd=REPO, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return torch.load(tmp_path / "out.pt")


def _one_process(adversary):
    net = method(adversary)
    loss = net(*batch())["loss"].mean()
    loss.backward()
    return loss, [p.grad for p in net.parameters()]


def test_simclr_on_two_ranks(tmp_path):
    found, (loss, grads) = _two_ranks(tmp_path, "none"), _one_process("none")
    assert torch.allclose(found["loss"], loss, atol=1e-6)
    for a, b in zip(found["grads"], grads, strict=True):
        assert torch.allclose(a, b, atol=1e-6) and b.abs().max() > 1e-4


def test_clae_on_two_ranks_attacks_the_loss_of_the_whole_batch(tmp_path):
    found, (loss, grads) = _two_ranks(tmp_path, "clae"), _one_process("clae")
    assert torch.allclose(found["loss"], loss, atol=1e-5)
    for a, b in zip(found["grads"], grads, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_one_process_needs_no_group():
    x = torch.rand(3, 2)
    assert distributed.world() == 1 and distributed.rank() == 0
    assert distributed.gather(x) is x and distributed.mean(x) is x
