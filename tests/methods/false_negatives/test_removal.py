"""False negatives inside the methods: masks, reductions, and what the log says of them."""

import copy
from functools import partial

import pytest
import torch

from tests.helpers import one_step
from tests.methods.helpers import EPS
from vidrobust.config import Config, ModelConfig
from vidrobust.data import Record
from vidrobust.methods import (
    RULES,
    AdversarialSimCLR,
    LossSettings,
    MomentumEncoder,
    Pairs,
    Removal,
    RuleNeeds,
    SimCLR,
    SupCon,
    ViewSettings,
    build_method,
    detect,
    nt_xent,
)
from vidrobust.methods.false_negatives.removal import FalseNegatives
from vidrobust.methods.false_negatives.rules import fixed, quantile, top_k
from vidrobust.models import add_branches, build_model
from vidrobust.utils.errors import UserError

TINY = ModelConfig(backbone="r2plus1d_10", width=4, hidden=8, dim=8)


def records(labels, groups=None) -> list[Record]:
    groups = groups or [""] * len(labels)
    return [
        Record(f"v{i}", f"v{i}", label, group)
        for i, (label, group) in enumerate(zip(labels, groups, strict=True))
    ]


@pytest.fixture(params=[(1, 2), (3, 2), (1, 3)], ids=["T=1", "T=3", "three clips"])
def batch(request):
    frames, views = request.param
    return (
        torch.rand(6, views, 3, frames, 16, 16),
        torch.tensor([4, 0, 2, 5, 1, 3]),
        torch.tensor([0, 1, 0, 1, 2, 2]),
    )


def known(removal: Removal, ids, labels, groups=None) -> Removal:
    by_id = [int(labels[ids.tolist().index(i)]) for i in range(len(ids))]
    removal.set_videos(records(by_id, groups))
    return removal


def test_a_rule_that_finds_nothing_is_simclr_to_the_last_bit(batch):
    views, ids, labels = batch
    plain = SimCLR(
        build_model(TINY, "projector"), LossSettings(0.5), views=ViewSettings(clips=views.shape[1])
    )
    for action in ("eliminate", "attract", "downweight"):
        removal = known(Removal(lambda s, p: fixed(s, p, 1.1), action), ids, labels)
        method = SimCLR(
            copy.deepcopy(plain.model),
            LossSettings(0.5),
            removal=removal,
            views=ViewSettings(clips=views.shape[1]),
        )
        losses = [m(views, ids, labels)["loss"] for m in (copy.deepcopy(plain), method)]
        assert torch.equal(*losses)


def test_oracle_attraction_is_supcon_to_the_last_bit(batch):
    views, ids, labels = batch
    clips = views.shape[1]
    supcon = SupCon(
        build_model(TINY, "projector"), LossSettings(0.5), views=ViewSettings(clips=clips)
    )
    removal = known(
        Removal(RULES["oracle"].rule, "attract", needs=RuleNeeds(labels=True)), ids, labels
    )
    method = SimCLR(
        copy.deepcopy(supcon.model),
        LossSettings(0.5),
        removal=removal,
        views=ViewSettings(clips=clips),
    )
    losses = [m(views, ids, labels)["loss"] for m in (supcon, method)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.mean().backward()
    for ours, theirs in zip(method.model.parameters(), supcon.model.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("action", ["eliminate", "attract", "downweight"])
def test_what_is_found_reaches_the_loss(batch, action):
    views, ids, labels = batch
    clips = views.shape[1]
    method = SimCLR(
        build_model(TINY, "projector"), LossSettings(0.5), views=ViewSettings(clips=clips)
    ).eval()
    method.removal = known(Removal(lambda s, p: quantile(s, p, 0.3), action), ids, labels)
    z = torch.cat([method.model(views[:, v]) for v in range(clips)]).detach()
    unit = torch.nn.functional.normalize(z, dim=1)
    keys = ids.repeat(clips)
    found = detect(lambda s, p: quantile(s, p, 0.3), unit @ unit.T, Pairs((keys, keys)))
    logits, losses = (unit @ unit.T / 0.5).double(), []
    for i in range(len(z)):
        own = [j for j in range(len(z)) if keys[j] == keys[i] and j != i]
        positives = own + [j for j in range(len(z)) if found[i, j] and action == "attract"]
        weight = dict.fromkeys(positives, 1.0)
        for j in range(len(z)):
            if keys[j] != keys[i] and j not in positives:
                confidence = float((unit @ unit.T)[i, j].clamp(0, 1))
                weight[j] = (
                    {"eliminate": 0.0, "downweight": 1 - confidence}[action] if found[i, j] else 1.0
                )
        total = sum(w * torch.exp(logits[i, j]) for j, w in weight.items())
        losses.append(
            sum(-torch.log(torch.exp(logits[i, j]) / total) for j in positives) / len(positives)
        )
    expected = torch.stack(losses).view(clips, -1).mean(0)
    assert torch.allclose(method(views, ids, labels)["loss"].double(), expected, atol=1e-5)


def test_labels_are_seen_by_the_oracle_alone(batch):
    views, ids, labels = batch
    for name, spec in RULES.items():
        if name in ("cluster", "sibling", "adaptive_threshold"):
            continue
        losses = []
        for told in (labels, labels.flip(0) + 7):
            removal = known(Removal(spec.rule, needs=RuleNeeds(labels=name == "oracle")), ids, told)
            torch.manual_seed(0)
            method = SimCLR(
                build_model(TINY, "projector"),
                LossSettings(0.5),
                removal=removal,
                views=ViewSettings(clips=views.shape[1]),
            )
            losses.append(method(views, ids, told)["loss"])
        assert torch.equal(*losses) == (name != "oracle"), name


def test_siblings_go_besides_and_unknown_groups_are_nobodys(batch):
    views, ids, _ = batch
    removal = Removal(lambda s, p: fixed(s, p, 1.1), siblings=True)
    removal.set_videos(records([0] * 6, ["a", "a", "", "", "b", "c"]))
    keys = ids.repeat(views.shape[1])
    found = removal(torch.randn(len(keys), 8), torch.randn(len(keys), 8), (keys, keys), 0.5).ignore
    for i, a in enumerate(keys.tolist()):
        for j, b in enumerate(keys.tolist()):
            assert found[i, j] == ({a, b} == {0, 1})


@pytest.mark.usefixtures("exact")
def test_the_adversary_meets_the_same_masks(batch):
    """False negatives of the first two clean views are removed from the adversarial loss and the
    attack's loss.

    They are detected once, among all clean views.
    """
    views, ids, labels = batch
    clips = views.shape[1]
    model = add_branches(build_model(TINY, "projector"))
    rule = lambda s, p: quantile(s, p, 0.4)  # noqa: E731
    removal = known(Removal(rule), ids, labels)
    method = AdversarialSimCLR(
        copy.deepcopy(model),
        LossSettings(0.5),
        one_step(EPS),
        removal,
        views=ViewSettings(clips=clips),
    )
    ours = method(views, ids, labels)
    z = [model(views[:, v]) for v in range(clips)]
    pair = ids.repeat(2)
    unit = torch.nn.functional.normalize(torch.cat(z).detach(), dim=1)
    every = ids.repeat(clips)
    two = detect(rule, unit @ unit.T, Pairs((every, every)))[: len(pair), : len(pair)]
    with model.use_branch("adv"):
        x = views[:, 0].clone().requires_grad_(True)
        za = model(x)
        nt_xent(torch.cat([za.detach(), za]), pair, 0.5, two).sum().backward()
        z_adv = model((views[:, 0] + EPS * x.grad.sign()).clamp(0, 1))
    expected = nt_xent(torch.cat([z[0], z_adv]), pair, 0.5, two).view(2, -1).mean(0)
    assert torch.allclose(ours["loss_adv"], expected, atol=1e-5)
    assert not torch.allclose(
        ours["loss_adv"],
        nt_xent(torch.cat([z[0], z_adv]), pair, 0.5).view(2, -1).mean(0),
        atol=1e-3,
    )


def test_a_momentum_encoder_looks_for_them(batch):
    views, ids, labels = batch
    model = build_model(TINY, "projector").eval()
    other = build_model(TINY, "projector")
    detector = MomentumEncoder(other, 1.0).eval()
    seen = []
    removal = known(Removal(lambda s, p: seen.append(s) or fixed(s, p)), ids, labels)
    SimCLR(
        model,
        LossSettings(0.5),
        removal=removal,
        detector=detector,
        views=ViewSettings(clips=views.shape[1]),
    )(views, ids, labels)
    unit = torch.nn.functional.normalize(
        torch.cat([detector(views[:, v]) for v in range(views.shape[1])]), dim=1
    )
    assert torch.allclose(seen[0], unit @ unit.T, atol=1e-5)


def test_the_log_has_rate_precision_and_recall():
    removal = Removal(lambda s, p: s > 0.5)
    removal.set_videos(records([0, 0, 1, -1]))
    ids = torch.arange(4)
    z = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [-1.0, 0.0]])
    removal(z, z, (ids, ids), 0.5)  # 0, 1 and 2 take each other for the same; only 0 and 1 are
    assert removal.report() == pytest.approx(
        {"fn_removed": 6 / 12, "fn_precision": 2 / 6, "fn_recall": 1.0}
    )
    assert removal.report() == {}, "once an epoch"
    apart = Removal(lambda s, p: s > 0.5)
    apart.set_videos(records([0, 1, 2, 3]))
    apart(z, z, (ids, ids), 0.5)
    assert apart.report()["fn_precision"] == 0, "all are of other classes"
    one_class = Removal(lambda s, p: s > 0.5)
    one_class.set_videos(records([0, 0, 0, 0]))
    one_class(z, z, (ids, ids), 0.5)
    assert one_class.report()["fn_precision"] == 1, "class 0 is a class"
    blind = Removal(lambda s, p: s > 0.5)
    blind(z, z, (ids, ids), 0.5)
    assert blind.report() == {"fn_removed": 0.5}, "nothing is known of these videos"
    blind.set_videos(records([-1] * 4))
    blind(z, z, (ids, ids), 0.5)
    assert blind.report() == {"fn_removed": 0.5}, "their labels are not known"


def test_clusters_are_made_of_what_is_remembered():
    removal = Removal(RULES["cluster"].rule, clusters=2, dim=2)
    removal.set_videos(records([-1] * 5))
    ids, z = torch.arange(4), torch.tensor([[1.0, 0.1], [1.0, 0.0], [-1.0, 0.1], [-1.0, 0.0]])
    removal.remember(z, ids)
    assert not removal(z, z, (ids, ids), 0.5).ignore.any(), "no clusters in the first epoch"
    removal.start_epoch()
    found = removal(z, z, (ids, ids), 0.5).ignore
    assert found[0].tolist() == [False, True, False, False] and removal.clusters[4] == -1
    state = copy.deepcopy(removal.state_dict())
    again = Removal(RULES["cluster"].rule, clusters=2, dim=2)
    again.set_videos(records([-1] * 5))
    again.load_state_dict(state)
    assert torch.equal(again(z, z, (ids, ids), 0.5).ignore, found)


def test_more_clusters_than_videos_is_refused():
    with pytest.raises(UserError, match=r"clusters=9: the data set has 5 videos; choose fewer"):
        Removal(RULES["cluster"].rule, clusters=9, dim=2).set_videos(records([0] * 5))


def test_similarities_are_float32_under_autocast(batch):
    views, ids, labels = batch
    seen = []
    removal = known(Removal(lambda s, p: seen.append(s) or fixed(s, p)), ids, labels)
    method = SimCLR(
        build_model(TINY, "projector"),
        LossSettings(0.5),
        removal=removal,
        views=ViewSettings(clips=views.shape[1]),
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(views, ids, labels)["loss"]
    assert seen[0].dtype == loss.dtype == torch.float32 and loss.isfinite().all()


def test_the_momentum_encoder_follows_in_training_alone_and_starts_from_the_model(batch):
    views, ids, labels = batch
    model, other = build_model(TINY, "projector"), build_model(TINY, "projector")
    detector = MomentumEncoder(other, 0.5, increases=False)
    removal = Removal(RULES["quantile"].rule)
    method = SimCLR(
        model,
        LossSettings(0.5),
        removal=removal,
        detector=detector,
        views=ViewSettings(clips=views.shape[1]),
    )
    before = [p.clone() for p in detector.model.parameters()]
    method.eval()(views, ids, labels)
    assert all(torch.equal(a, b) for a, b in zip(before, detector.model.parameters(), strict=True))
    assert not removal.counts.any(), "nor is anything counted"
    method.train()(views, ids, labels)
    for old, now, fast in zip(before, detector.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(now, (old + fast) / 2, atol=1e-6)
    method.prepare(records([0] * 6))
    assert all(
        torch.equal(a, b)
        for a, b in zip(detector.model.parameters(), model.parameters(), strict=True)
    )


def test_every_anchor_of_the_adversarial_pair_keeps_a_negative():
    """One class, three clips: what is left of all views may lie outside the two that the adversary
    meets.
    """
    views, ids, labels = (
        torch.rand(4, 3, 3, 1, 16, 16),
        torch.arange(4),
        torch.zeros(4, dtype=torch.long),
    )
    removal = known(Removal(RULES["oracle"].rule, needs=RuleNeeds(labels=True)), ids, labels)
    method = AdversarialSimCLR(
        add_branches(build_model(TINY, "projector")),
        LossSettings(0.5),
        one_step(EPS),
        removal,
        views=ViewSettings(clips=3),
    )
    assert (method(views, ids, labels)["loss_adv"] > 0.01).all()


@pytest.mark.parametrize("groups", [None, ["a", "b"], ["a", None]])
def test_siblings_need_groups(groups):
    with pytest.raises(
        UserError, match="rule=sibling: no two videos of the data set are known to be cut"
    ):
        Removal(RULES["sibling"].rule, needs=RuleNeeds(groups=True)).set_videos(
            records([0, 1], groups)
        )
    Removal(RULES["sibling"].rule, needs=RuleNeeds(groups=True)).set_videos(
        records([0, 1], ["a", "a"])
    )


def test_too_much_and_nothing_are_told(caplog):
    """Once where it is more than half, and at the end of the run where it is nothing."""
    ids, x = torch.arange(6), torch.eye(6)
    much = Removal(lambda s, p: p.negatives)
    for _ in range(2):
        much(x, x, (ids, ids), 0.0)
        assert much.report()["fn_removed"] == pytest.approx(4 / 5)
    assert [r.message[:65] for r in caplog.records] == [
        "method.false_negatives: 80% of an epoch's negatives were treated a"[:65]
    ]
    caplog.clear()
    nothing = Removal(lambda s, p: torch.zeros_like(p.negatives))
    for last in (False, True):
        nothing(x, x, (ids, ids), 0.0)
        assert nothing.report(last)["fn_removed"] == 0
        assert len(caplog.records) == int(last)
    assert "no negative of the last epoch was treated as false" in caplog.text


@pytest.mark.parametrize(
    ("rule", "options", "told"),
    [
        ("fixed", {"threshold": 0.3}, {"threshold": 0.3}),
        ("topk", {"k": 3}, {"k": 3}),
        ("topk_threshold", {"k": 3, "threshold": 0.3}, {"k": 3, "threshold": 0.3}),
        ("quantile", {"rate": 0.2, "over": "batch"}, {"rate": 0.2, "over": "batch"}),
        (
            "adaptive_threshold",
            {"start": 0.9, "threshold": 0.3, "warmup": 0.2},
            {"start": 0.9, "end": 0.3, "warmup": 0.2},
        ),
        ("adaptive_rate", {"rate": 0.2, "warmup": 0.2}, {"rate": 0.2, "warmup": 0.2}),
        ("mean_std", {"sigmas": 1.5}, {"k": 1.5}),
        ("cluster", {"clusters": 4}, {}),
        ("oracle", {}, {}),
    ],
)
def test_options_reach_their_rule(rule, options, told):
    cfg = Config(model=TINY)
    wanted = cfg.method.false_negatives
    wanted.rule, wanted.action, wanted.siblings = rule, "attract", False
    for key, value in options.items():
        setattr(wanted, key, value)
    removal = build_method(cfg, 5).removal
    assert removal.rule.func is RULES[rule].rule and removal.rule.keywords == told
    assert (removal.action, removal.siblings, removal.classes, removal.dim) == (
        "attract",
        False,
        5,
        8,
    )
    assert removal.cluster_count == (4 if rule == "cluster" else 0)
    assert removal.needs.labels == (rule == "oracle")
    assert removal.needs.whole_batch == (rule in ("mean_std", "quantile"))


@pytest.mark.parametrize(
    "rule", [partial(top_k, k=2), partial(quantile, rate=0.3), partial(fixed, threshold=0.2)]
)
def test_a_view_that_stands_for_another_has_its_false_negatives(rule):
    """A rule of ranks asked again, on [z1, z2, z1], found others than on [z1, z2]."""
    videos, clips, places = 5, 2, (0, 1, 0)
    ids = torch.arange(videos).repeat(clips)
    z = torch.nn.functional.normalize(torch.randn(len(ids), 4), dim=1)
    found = Removal(rule).detect(z, z, (ids, ids), 1.0)
    again = found.at(places, clips)
    for a, i in ((a, i) for a in range(3) for i in range(videos)):
        for b, j in ((b, j) for b in range(3) for j in range(videos)):
            at, there = (
                (a * videos + i, b * videos + j),
                (places[a] * videos + i, places[b] * videos + j),
            )
            assert again.mask[at] == found.mask[there] and again.negatives[at] == (i != j)
    assert found.mask.any()


def test_pairs_of_several_ranks_are_picked_rank_by_rank():
    mask = (
        torch.rand(4, 12) < 0.3
    )  # two clips of two videos, and those of three ranks in the columns
    others = torch.ones_like(mask)
    picked = FalseNegatives(mask, torch.rand(4, 12), others).at((1,), 2).mask
    assert torch.equal(picked, mask[2:, [2, 3, 6, 7, 10, 11]])
