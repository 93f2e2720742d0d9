import math

import pytest
import torch

from vidrobust.methods import info_nce, nt_xent


def _oracle(logits, positives, ignore, extra):
    """Compute the loss by a double loop."""
    losses = []
    for i, row in enumerate(logits.tolist()):
        chosen = [j for j in range(len(row)) if positives[i][j]]
        kept = [j for j in range(len(row)) if positives[i][j] or not ignore[i][j]]
        others = extra[i].tolist() if extra is not None else []
        total = sum(math.exp(row[j]) for j in kept) + sum(math.exp(e) for e in others)
        losses.append(sum(-math.log(math.exp(row[j]) / total) for j in chosen) / len(chosen))
    return torch.tensor(losses)


@pytest.mark.parametrize("extra", [None, 1, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_info_nce_matches_a_double_loop(extra, masked):
    for _ in range(20):
        n, m = 5, 9
        logits = 3 * torch.randn(n, m, dtype=torch.float64)
        positives = torch.rand(n, m) < 0.3
        positives[:, 0] = True
        ignore = torch.rand(n, m) < 0.4 if masked else None
        more = torch.randn(n, extra, dtype=torch.float64) if extra else None
        expected = _oracle(
            logits, positives, ignore if masked else torch.zeros(n, m, dtype=bool), more
        )
        assert torch.allclose(
            info_nce(logits, positives, ignore, more).float(), expected, atol=1e-5
        )


def test_empty_masks_give_bitwise_the_plain_loss():
    logits, positives = torch.randn(6, 8), torch.eye(6, 8, dtype=torch.bool)
    plain = info_nce(logits, positives)
    assert torch.equal(plain, info_nce(logits, positives, torch.zeros(6, 8, dtype=torch.bool)))
    assert torch.equal(plain, info_nce(logits, positives, None, torch.empty(6, 0)))
    assert torch.allclose(
        plain, torch.nn.functional.cross_entropy(logits, torch.arange(6), reduction="none")
    )


def test_large_logits_do_not_overflow_and_no_positive_gives_nan():
    logits = torch.tensor([[500.0, -500.0, 499.0]])
    positives = torch.tensor([[True, False, False]])
    assert info_nce(logits, positives).item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-4)
    assert info_nce(logits, ~positives & positives).isnan().all()


def _nt_xent_oracle(z, ids, temperature):
    losses = []
    for i in range(len(z)):
        s = [
            torch.dot(z[i], z[j]).item() / (z[i].norm() * z[j].norm()).item() / temperature
            for j in range(len(z))
        ]
        total = sum(math.exp(s[j]) for j in range(len(z)) if j != i)
        positives = [j for j in range(len(z)) if j != i and ids[j] == ids[i]]
        losses.append(sum(-math.log(math.exp(s[j]) / total) for j in positives) / len(positives))
    return torch.tensor(losses)


@pytest.mark.parametrize(
    ("views", "temperature", "scale"), [(2, 0.5, 1.0), (2, 0.07, 30.0), (4, 0.2, 0.01)]
)
def test_nt_xent_matches_a_double_loop_for_any_views_and_norms(views, temperature, scale):
    z, ids = scale * torch.randn(3 * views, 7), torch.arange(3).repeat(views)
    assert torch.allclose(
        nt_xent(z, ids, temperature), _nt_xent_oracle(z, ids.tolist(), temperature), atol=1e-4
    )


def test_ignored_pairs_and_extra_negatives_change_the_loss():
    z, ids = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    ignore = torch.zeros(6, 6, dtype=torch.bool)
    ignore[0, 1] = True
    plain, masked = nt_xent(z, ids, 0.5), nt_xent(z, ids, 0.5, ignore=ignore)
    assert masked[0] < plain[0] and torch.equal(masked[1:], plain[1:])
    assert (nt_xent(z, ids, 0.5, extra=torch.zeros(6, 2)) > plain).all()


def test_loss_of_bf16_embeddings_is_computed_in_float32():
    z, ids = torch.randn(8, 16), torch.arange(4).repeat(2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z.bfloat16(), ids, 0.1)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, nt_xent(z.bfloat16().float(), ids, 0.1))


def test_gradient_passes_gradcheck():
    z = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    similarity = torch.eye(6, dtype=torch.bool)
    positives = torch.arange(6).remainder(3)[:, None] == torch.arange(6).remainder(3)[None]
    assert torch.autograd.gradcheck(
        lambda v: info_nce(v @ v.T, positives & ~similarity, similarity), z
    )


@pytest.mark.parametrize("chunk", [1, 4, 5, 100])
def test_chunks_give_the_same_values_and_gradients(chunk):
    ids = torch.arange(6).repeat(3)
    masks = {
        "ignore": torch.rand(18, 18) < 0.2,
        "attract": torch.rand(18, 18) < 0.1,
        "weights": torch.rand(18, 18),
        "extra": torch.randn(18, 2),
    }
    for options in ({}, masks):
        results = []
        for size in (0, chunk):
            torch.manual_seed(0)
            z = torch.randn(18, 5, requires_grad=True)
            loss = nt_xent(z, ids, 0.3, chunk=size, **options)
            (loss * torch.arange(18)).sum().backward()
            results.append((loss, z.grad))
        for a, b in zip(*results, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_weights_scale_negatives_and_zero_ignores_them():
    logits, positives = torch.randn(5, 7, dtype=torch.float64), torch.eye(5, 7, dtype=torch.bool)
    weights = torch.rand(5, 7, dtype=torch.float64)
    weights[:, 5] = 0
    weights[0, 0] = 0  # the weight of a positive has no effect
    results = info_nce(logits, positives, weights=weights)
    for i in range(5):
        e = logits[i].exp()
        total = e[i] + sum(weights[i, j] * e[j] for j in range(7) if j != i)
        assert results[i] == pytest.approx(float(total.log() - logits[i, i]))
    ones = torch.ones(5, 7, dtype=torch.float64)
    assert torch.equal(info_nce(logits, positives, weights=ones), info_nce(logits, positives))


def test_logits_and_extra_negatives_get_gradients():
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    extra = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    positives, ignore = torch.eye(4, 6, dtype=torch.bool), torch.rand(4, 6) < 0.3
    positives[:, 5] = True
    weights = torch.rand(4, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: info_nce(a, positives, ignore, b, weights), (logits, extra)
    )


def test_attracted_pairs_are_positives_and_no_row_is_its_own():
    z, ids = torch.randn(6, 4), torch.arange(6)
    attract = torch.ones(6, 6, dtype=torch.bool)
    loss = nt_xent(z, ids, 0.5, attract=attract)
    assert torch.equal(loss, nt_xent(z, torch.zeros(6), 0.5)), (
        "attracting all pairs is the same as one class"
    )
    assert nt_xent(torch.randn(2, 4), torch.zeros(2), 0.5).isfinite().all(), (
        "a batch of one video has no negatives"
    )
    assert nt_xent(z * torch.nan, torch.zeros(6), 0.5).isnan().all(), (
        "NaN embeddings are not hidden"
    )


def test_float64_stays_float64_and_passes_gradcheck():
    """Computing it in float32 would make gradcheck fail."""
    z = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    ids, extra = torch.arange(3).repeat(2), torch.randn(6, 2, dtype=torch.float64)
    assert nt_xent(z, ids, 0.2).dtype == torch.float64
    for options in (
        {},
        {"extra": extra},
        {"chunk": 2},
        {"weights": torch.rand(6, 6, dtype=torch.float64)},
    ):
        assert torch.autograd.gradcheck(
            lambda v, options=options: nt_xent(v, ids, 0.2, **options), z
        )
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda v: info_nce(v, torch.eye(4, 7, dtype=torch.bool)), logits
    )
    assert nt_xent(z.bfloat16(), ids, 0.2).dtype == torch.float32
