"""TARO against a transcription of its formula (Kim et al. 2023, and the released code)."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from tests.methods.helpers import EPS, TINY, ascend, assert_same, attack, cosine
from vidrobust.config import Config
from vidrobust.methods import BYOL, TARO, Adversary, build_method
from vidrobust.methods.adversarial.taro import confusing
from vidrobust.utils.errors import UserError


def built(name: str, **options) -> TARO:
    cfg = Config(model=TINY)
    cfg.method.name, cfg.method.adversary.name = name, "taro"
    for key, value in options.items():
        setattr(cfg.method.adversary, key, value)
    method = build_method(cfg, 3)
    assert isinstance(method, TARO)
    return method


def test_the_clip_to_be_taken_for_by_a_loop():
    features, predicted = torch.randn(6, 7), 3 * torch.randn(6, 5)
    found = confusing(features[2:4], features, predicted, slice(2, 4))
    entropy = [-sum(float(p) * math.log(p) for p in each.softmax(0).tolist()) for each in predicted]
    for row, i in enumerate((2, 3)):
        cos = {j: (cosine(features[i], features[j]) + 1) / 2 for j in range(6) if j != i}
        near, unsure = math.hypot(*cos.values(), 0.5), math.hypot(*entropy)  # its own counts as 0
        score = {j: cos[j] / near + entropy[j] / unsure for j in cos}
        assert int(found[row]) == max(score, key=score.get)


def test_similarity_and_uncertainty_both_count():
    features, sure = torch.eye(4), 9 * torch.eye(4)
    unsure_of_the_last = sure * torch.tensor([1, 1, 1, 0.0])[:, None]
    assert confusing(features, features, unsure_of_the_last, slice(0, 4))[:3].tolist() == [3, 3, 3]
    twins = torch.tensor([[1.0, 0], [0.1, 1], [0.99, 0.1], [0, 1]])
    assert confusing(twins, twins, sure, slice(0, 4)).tolist() == [2, 3, 0, 1]


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("name", ["byol", "simsiam"])
@pytest.mark.usefixtures("exact")
def test_taro_is_its_formula(name, frames):
    """D(x1, a1) + w (D(a2, a1) + D(a2, x1)); predictions of a1, a2 move to the embeddings of the
    clips taken for.
    """
    views, ids = torch.rand(4, 2, 3, frames, 16, 16), torch.arange(4)
    method = built(name)
    method.adversary, method.weight = attack(branches=("clean",)), 0.7
    twin = copy.deepcopy(method)
    ours = method(views, ids, ids)["loss"]
    net, predictor = twin.model, twin.predictor

    goals = []
    for x in (views[:, 0], views[:, 1]):  # chosen in training mode, and met in eval mode
        look = copy.deepcopy(twin)
        e = look.model.backbone(x).detach()
        p = look.predictor(look.model.head(e)).detach()
        goals.append(twin.eval().model(x).detach()[confusing(e, e, p, slice(0, 4))])
        twin.train()
    twin.eval()
    both = torch.cat([views[:, 0], views[:, 1]])
    a = ascend(lambda v: F.cosine_similarity(predictor(net(v)), torch.cat(goals)), both)
    assert (a - both).abs().max() == pytest.approx(EPS, abs=1e-6)
    twin.train()

    z1 = net(views[:, 0])
    if twin.target is not None:
        twin.target.follow(net, 0)
    seen = []
    for x in (views[:, 0], *a.chunk(2)):
        z = z1 if not seen else net(x)
        seen.append((predictor(z), z.detach() if twin.target is None else twin.target(x)))

    def between(first, second):
        near = (
            F.cosine_similarity(first[0], second[1]) + F.cosine_similarity(second[0], first[1])
        ) / 2
        return -near if twin.target is None else 2 * (2 - 2 * near)

    x1, a1, a2 = seen
    assert_same(ours, between(x1, a1) + 0.7 * (between(a2, a1) + between(a2, x1)), method, twin)


def test_the_target_takes_adversarial_views_through_their_branch():
    method = built("byol", threats=["linf-0.02", "l2-0.5"], combine="branches")
    method(torch.rand(4, 2, 3, 1, 16, 16), torch.arange(4), torch.arange(4))
    for encoder in (method.model, method.target.model):
        seen = {
            key.split(".branches.")[1].split(".")[0]: int(value)
            for key, value in encoder.named_buffers()
            if key.endswith("num_batches_tracked")
        }
        assert seen == {"clean": 1, "adv": 2, "adv2": 2}


def test_the_attack_leaves_the_predictors_statistics_alone():
    method = built("simsiam")
    norms = {k: v.clone() for k, v in method.predictor.named_buffers()}
    both = torch.rand(8, 3, 1, 16, 16)
    method.adversary.views(method.model, lambda model: method._targeted_loss(both), both, 0.5)
    assert all(torch.equal(v, norms[k]) for k, v in method.predictor.named_buffers())
    assert method.predictor.training and method.model.training


def test_taro_is_built_with_its_own_attack_of_two_views():
    method = built("byol")
    assert isinstance(method.adversary, Adversary) and method.adversary.steps == 10
    cfg = Config(model=TINY)
    cfg.method.name = "byol"
    assert type(build_method(cfg, 3)) is BYOL
    cfg.method.adversary.name, cfg.method.clips_per_video = "taro", 3
    with pytest.raises(UserError, match="clips_per_video=3: taro needs two clips per video"):
        build_method(cfg, 3)
