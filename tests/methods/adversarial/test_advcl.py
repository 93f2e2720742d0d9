"""AdvCL against its formula, its high-frequency view, and pseudo-labels."""

import copy

import pytest
import torch
from torch.nn import functional as F

from tests.methods.helpers import T, ascend, assert_same, attack, loop
from tests.training.helpers import equal, tiny_config, train_state
from vidrobust import checkpoint
from vidrobust.config import ModelConfig
from vidrobust.methods import AdvCL, AdvCLSettings, LossSettings, PseudoLabels, high_pass
from vidrobust.models import add_branches, build_model
from vidrobust.utils.errors import UserError

TINY = ModelConfig(backbone="r2plus1d_10", width=4, hidden=64, dim=8)
ADVERSARY = "method.adversary."


@pytest.fixture(params=[1, 3], ids=["T=1", "T=3"])
def batch(request):
    return (
        torch.rand(4, 3, 3, request.param, 16, 16),
        torch.arange(4),
        torch.zeros(4, dtype=torch.long),
    )


def advcl(radius=2.0):
    model = add_branches(build_model(TINY, "projector"), ("adv", "adv_ce"))
    method = AdvCL(
        model,
        LossSettings(T),
        attack(branches=("adv",)),
        attack(branches=("adv_ce",)),
        settings=AdvCLSettings(clusters=(2, 3), ce_weight=0.3, radius=radius),
    )
    method.pseudo.labels = torch.tensor([[0, 1], [1, 0], [-1, -1], [1, 2]])
    return method.train()


@pytest.mark.usefixtures("exact")
def test_it_is_its_formula(batch):
    """SupCon over [adv, x1, x2, high] + weight * mean cross-entropy of the heads, a norm branch
    each.
    """
    views, ids, labels = batch
    method = advcl()
    twin = copy.deepcopy(method)
    ours = method(views, ids, labels)["loss"]
    net, heads, x1, x2, x = twin.model, twin.heads, views[:, 0], views[:, 1], views[:, 2]
    high = high_pass(x, 2.0)
    clean = [net(x1), net(x2), net(high)]
    four = ids.repeat(4)
    net.eval()
    others = [net(other).detach() for other in (x1, x2, high)]
    with net.use_branch("adv"):
        x_adv = ascend(lambda v: loop(torch.cat([net(v), *others]), four), x)
        net.train()
        z_adv = net(x_adv)
    known = twin.pseudo(ids)

    def ce(v):
        features = net.backbone(v)
        each = [
            F.cross_entropy(head(features), known[:, g].clamp(min=0), reduction="none")
            for g, head in enumerate(heads)
        ]
        return torch.stack(each).mean(0) * (known[:, 0] >= 0)

    with net.use_branch("adv_ce"):
        net.eval()
        x_ce = ascend(ce, x)
        net.train()
        cross = ce(x_ce)
    assert_same(
        ours, loop(torch.cat([z_adv, *clean]), four).view(4, -1).mean(0) + 0.3 * cross, method, twin
    )


@pytest.mark.parametrize("shape", [(2, 3, 1, 8, 8), (1, 3, 4, 9, 12)])
def test_the_high_frequency_view_lacks_the_low_ones(shape):
    x = torch.rand(shape)
    assert torch.allclose(high_pass(x, -1), x, atol=1e-5), "all frequencies"
    assert high_pass(torch.full(shape, 0.4), 0.5).abs().max() < 1e-6, "a constant has none"
    columns = torch.arange(shape[4]).expand(shape)
    for cycles, stays in ((1, False), (3, True)):
        wave = torch.cos(2 * torch.pi * cycles * columns / shape[4])
        assert torch.allclose(
            high_pass(wave, 2.5), wave if stays else torch.zeros(shape), atol=1e-4
        )
        assert torch.allclose(high_pass(wave, cycles), wave, atol=1e-4), "those at the radius stay"
    assert torch.allclose(high_pass(x, 2.0)[:, :, :1], high_pass(x[:, :, :1], 2.0), atol=1e-5), (
        "each frame's own"
    )


def test_pseudo_labels_are_clusters_of_features():
    centres = F.normalize(torch.randn(3, 16), dim=1)
    truth = torch.arange(30) % 3
    features = 5 * centres[truth] + 0.1 * torch.randn(30, 16)
    found = PseudoLabels([3, 1], "method.clusters")
    found.set_videos(32)
    found.cluster(features, torch.arange(1, 31))
    labels = found(torch.arange(32))
    assert (
        labels[0].tolist() == labels[31].tolist() == [-1, -1]
        and labels[1:31, 1].tolist() == [0] * 30
    )
    assert (labels[1:31, 0][:, None] == labels[1:31, 0]).equal(truth[:, None] == truth)
    with pytest.raises(
        UserError, match="^method.clusters: 500 clusters of 32 videos; choose fewer$"
    ):
        PseudoLabels([500], "method.clusters").set_videos(32)
    with pytest.raises(
        UserError, match="^method.clusters: 3 clusters, and 2 training videos decode; choose fewer$"
    ):
        found.cluster(features[:2], torch.arange(2))


def test_a_run_clusters_once_and_goes_on_bitwise(ucf, tmp_path):  # ucf: 8 training videos
    train_state(tiny_config(ucf), tmp_path / "teacher")
    words = [
        f"{ADVERSARY}name=advcl",
        f"{ADVERSARY}steps=1",
        f"{ADVERSARY}clusters=[2,4]",
        "train.keep=9",
        f"method.teacher={tmp_path}/teacher",
        "train.checkpoint_every=1",
    ]
    cfg = tiny_config(ucf, *words)
    whole = train_state(cfg, tmp_path / "whole")
    labels = whole["method"]["pseudo.labels"]
    assert labels.shape == (8, 2) and sorted(labels[:, 1].unique().tolist()) == [0, 1, 2, 3]
    first = checkpoint.read_checkpoint(tmp_path / "whole/checkpoints/step_00000001.pt")
    assert torch.equal(first["method"]["pseudo.labels"], labels)
    (tmp_path / "teacher").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="no checkpoint"):
        train_state(cfg, tmp_path / "lost", tmp_path / "whole/checkpoints/step_00000002.pt")
    (tmp_path / "gone").rename(tmp_path / "teacher")
    resumed = train_state(
        cfg, tmp_path / "resumed", tmp_path / "whole/checkpoints/step_00000002.pt"
    )
    assert all(equal(whole[key], resumed[key]) for key in whole)
    with pytest.raises(UserError, match="method.teacher is empty, and this method learns from one"):
        train_state(tiny_config(ucf, *words[:3]), tmp_path / "none")


def test_pseudo_labels_finetune_without_labels(ucf, tmp_path):
    """DynACL++: the head alone first, then TRADES; the backbone stays as it was meanwhile."""
    train_state(tiny_config(ucf), tmp_path / "first")
    words = [
        "method.name=supervised",
        "method.clusters=2",
        "method.head_first=0.5",
        f"{ADVERSARY}name=trades",
        f"{ADVERSARY}steps=1",
        f"model.weights={tmp_path}/first",
        "train.checkpoint_every=1",
        "train.keep=9",
        "optim.weight_decay=0",
    ]
    state = train_state(tiny_config(ucf, *words), tmp_path / "second")
    begin = checkpoint.backbone_state(str(tmp_path / "first"))
    half = checkpoint.backbone_state(str(tmp_path / "second/checkpoints/step_00000002.pt"))
    assert all(torch.equal(value, half[key]) for key, value in begin.items()), (
        "weights and statistics"
    )
    end = checkpoint.backbone_state(str(tmp_path / "second"))
    assert any(not torch.equal(value, end[key]) for key, value in begin.items())
    assert state["model"]["head.weight"].shape[0] == 2
    assert set(state["method"]["pseudo.labels"].flatten().tolist()) == {0, 1}


def test_clusters_may_be_of_another_branch_and_of_features_as_they_are(ucf, tmp_path, monkeypatch):
    """DynACL++: the clean branch's features are clustered, and the adversarial branch is
    finetuned.
    """
    train_state(
        tiny_config(ucf, f"{ADVERSARY}name=acl", f"{ADVERSARY}steps=1", "eval.branch=adv"),
        tmp_path / "first",
    )
    seen = []
    monkeypatch.setattr(
        "vidrobust.methods.pseudo_labels.k_means",
        lambda points, k, **_: seen.append(points) or torch.arange(len(points)) % k,
    )
    words = [
        "method.name=supervised",
        "method.clusters=2",
        f"model.weights={tmp_path}/first",
        "train.max_steps=1",
        "method.clusters_from=clean",
        "method.clusters_metric=euclidean",
    ]
    state = train_state(tiny_config(ucf, *words), tmp_path / "second")
    clean, adv = (
        checkpoint.backbone_state(str(tmp_path / "first"), branch) for branch in ("clean", "adv")
    )
    norm = next(key for key in clean if key.endswith("running_mean"))
    assert not torch.equal(clean[norm], adv[norm])
    train_state(
        tiny_config(ucf, *[word for word in words if "clusters_" not in word]), tmp_path / "third"
    )
    raw, unit = seen
    assert torch.allclose(unit.norm(dim=1), torch.ones(len(unit)), atol=1e-5)
    assert not torch.allclose(F.normalize(raw, dim=1), unit, atol=1e-3) and state["step"] == 1
    for key in ("method.clusters=", "model.weights="):
        with pytest.raises(UserError, match="names a norm branch of trained weights"):
            tiny_config(ucf, *[word for word in words if not word.startswith(key)])
    words[2] = f"model.weights={tmp_path}/first/backbone.pt"
    with pytest.raises(UserError, match="has no batch-norm branches; give the folder of the run"):
        train_state(tiny_config(ucf, *words), tmp_path / "fourth")
