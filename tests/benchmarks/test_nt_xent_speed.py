import pytest
import torch

from tests.helpers import tool
from vidrobust.benchmarks.nt_xent import broadcast_nt_xent, loss_rows, measure_losses, peak_memory
from vidrobust.methods import nt_xent


def test_all_implementations_give_the_same_loss():
    rows, _ = loss_rows(16, 8, 0.5, 4)
    timings = measure_losses(rows, 16, 8, 2, torch.device("cpu"))
    assert [len(t.seconds) for t in timings] == [2] * len(rows) and timings[0].name == "vidrobust"
    for timing in timings:
        assert timing.value == pytest.approx(timings[0].value, abs=1e-4) and timing.median > 0


def test_claes_formula_equals_nt_xent_and_is_left_out_for_large_batches():
    z = torch.randn(10, 6)
    assert broadcast_nt_xent(z, 0.3) == pytest.approx(
        float(nt_xent(z, torch.arange(5).repeat(2), 0.3).mean()), abs=1e-5
    )
    assert "CLAE's code" not in loss_rows(4096, 128, 0.5, 256)[0]


def test_the_chunked_form_is_left_out_if_one_chunk_holds_all_anchors():
    assert (
        "vidrobust, chunk=4" in loss_rows(6, 4, 0.5, 4)[0]
        and "vidrobust, chunk=6" not in loss_rows(6, 4, 0.5, 6)[0]
    )


def test_a_slow_loss_is_called_only_once():
    calls = []
    rows = {"quick": lambda z: z.sum(), "slow": lambda z: calls.append(1) or z.sum()}
    measure_losses(rows, 4, 2, 5, torch.device("cpu"), most_s=0.0)
    assert len(calls) == 1


def test_peak_memory_of_4096_embeddings_is_at_most_three_times_the_logits():
    ids = torch.arange(2048).repeat(2)
    whole = peak_memory(lambda z: nt_xent(z, ids, 0.5).mean(), 4096, 128, torch.device("cpu"))
    chunked = peak_memory(
        lambda z: nt_xent(z, ids, 0.5, chunk=256).mean(), 4096, 128, torch.device("cpu")
    )
    assert whole <= 3 and chunked <= 0.5


def test_the_tool_prints_a_row_per_loss_and_size(tmp_path):
    done = tool(
        "benchmark",
        "losses",
        "--rounds",
        "1",
        "--samples",
        "8,16",
        "--memory",
        "64",
        "--chunk",
        "4",
        "model.dim=8",
        "device=cpu",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for text in ("| 8 | vidrobust ", "| 16 | vidrobust, chunk=4", "| 16 | CLAE's code", "N = 64: "):
        assert text in done.stdout
    done = tool("benchmark", "losses", "--samples", "7", cwd=tmp_path)
    assert done.returncode == 1 and "must be even numbers of at least 4" in done.stderr
