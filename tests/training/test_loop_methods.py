"""The training loop and what methods receive from it and keep."""

import dataclasses
import json

import pytest
import torch

from tests.helpers import tiny, tiny_ucf101, tiny_videomae
from tests.training.helpers import equal, tiny_config, train_state, two_ranks
from vidrobust import checkpoint, config
from vidrobust.methods import build_method
from vidrobust.models.backbone import Backbone, BackboneParts
from vidrobust.training.loop import NonFinite
from vidrobust.training.setup import arrange, build_run
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import read_metrics

REMOVAL, ADVERSARY, NEGATIVES = "method.false_negatives.", "method.adversary.", "method.negatives."
KEEPING = {
    "moco": [
        "method.name=moco",
        "method.queue=8",
        f"{REMOVAL}rule=cluster",
        f"{REMOVAL}clusters=2",
    ],
    "byol": ["method.name=byol", "method.predictor=8"],
    "simsiam": ["method.name=simsiam", "method.predictor=8"],
    "acl": [f"{ADVERSARY}name=acl", f"{ADVERSARY}steps=2", f"{ADVERSARY}schedule=adaptive"],
    "dynacl": [f"{ADVERSARY}name=dynacl", f"{ADVERSARY}steps=1", "method.joint_views=true"],
    "fast": ["method.name=supervised", f"{ADVERSARY}name=fast"],
    "free": ["method.name=supervised", f"{ADVERSARY}name=free"],
    "moco and clae": ["method.name=moco", "method.queue=8", f"{ADVERSARY}name=clae"],
    "negatives": [f"{NEGATIVES}names=[patch,shuffle]", f"{NEGATIVES}count=2"],
    "detector": [
        f"{REMOVAL}rule=adaptive_rate",
        f"{REMOVAL}encoder=momentum",
        f"{REMOVAL}warmup=0.3",
    ],
}


@pytest.fixture(scope="module")
def teacher(ucf, tmp_path_factory):
    """A folder with a trained run, `teacher`."""
    top = tmp_path_factory.mktemp("trained")
    train_state(tiny_config(ucf, "train.max_steps=1"), top / "teacher")
    return top


@pytest.mark.parametrize("kind", KEEPING)
def test_what_methods_keep_is_resumed_bitwise(ucf, tmp_path, kind):
    """Queue, momentum encoder, clusters, and the counts of an epoch that was cut in two."""
    cfg = tiny_config(ucf, *KEEPING[kind], "train.checkpoint_every=1", "train.keep=9")
    whole = train_state(cfg, tmp_path / "whole")
    rows = (tmp_path / "whole/metrics.jsonl").read_text()
    resumed = train_state(
        cfg, tmp_path / "resumed", tmp_path / "whole/checkpoints/step_00000003.pt"
    )
    for key in whole:
        assert equal(whole[key], resumed[key]), key
    told = [
        [json.loads(line) for line in text.splitlines() if "train_epoch" in line]
        for text in (rows, (tmp_path / "resumed/metrics.jsonl").read_text())
    ]
    if kind in ("moco", "detector"):
        assert [row["epoch"] for row in told[0]] == [0, 1] and told[0][1] == told[1][-1]
        assert 0 <= told[0][1]["fn_removed"] < 1


def test_textures_that_are_made_anew_are_read_again(tmp_path):
    """The remedy that the message of a stopped run names works."""
    root, twins = tiny_ucf101(tmp_path / "data"), tmp_path / "twins"
    tiny_ucf101(twins)
    bad = [twins / f"videos/Beta/v_Beta_g{n:02d}_c01.avi" for n in (1, 2, 3)]
    mended = [path.read_bytes() for path in bad]
    for path in bad:
        path.write_bytes(b"")
    words = [
        f"{NEGATIVES}names=[texture]",
        f"data.twins={twins}",
        "train.epochs=4",
        "train.checkpoint_every=1",
    ]
    with pytest.raises(
        UserError, match=r"3 of 8 training videos are bad .* deleted files of data.twins anew"
    ):
        train_state(tiny_config(root, *words, "train.max_bad=0.3"), tmp_path / "out")
    with pytest.raises(UserError, match="3 of 8 training videos are bad"):
        train_state(
            tiny_config(root, *words, "train.max_bad=0.3"), tmp_path / "out", tmp_path / "out"
        )
    for path, content in zip(bad, mended, strict=True):
        path.unlink()
        path.write_bytes(content)
    state = train_state(
        tiny_config(root, *words, "train.max_bad=0.3"), tmp_path / "out", tmp_path / "out"
    )
    assert state["bad_videos"] == {} and state["step"] == 8


@pytest.mark.parametrize(
    ("words", "forward", "backward"),
    [
        ([], 2, 2),
        (["method.clips_per_video=3"], 3, 3),
        (["method.name=moco", "method.queue=8"], 2, 1),
        (["method.name=byol"], 4, 2),
        ([f"{NEGATIVES}names=[patch]"], 3, 3),
        (
            [
                f"{NEGATIVES}names=[patch,freeze]",
                f"{NEGATIVES}count=2",
                "method.name=moco",
                "method.queue=8",
            ],
            6,
            1,
        ),
        ([f"{NEGATIVES}names=[patch]", "method.name=byol"], 5, 2),
        ([f"{NEGATIVES}names=[patch]", f"{ADVERSARY}name=clae"], 5, 5),
        (["method.name=supervised"], 1, 1),
        ([f"{ADVERSARY}name=clae"], 4, 4),
        ([f"{ADVERSARY}name=clae", f"{ADVERSARY}threats=[linf-4/255,l2-1]"], 6, 6),
        ([f"{ADVERSARY}name=rocl"], 13, 12),
        ([f"{ADVERSARY}name=acl"], 14, 14),
        ([f"{ADVERSARY}name=acl", f"{ADVERSARY}pairing=a2s"], 8, 7),
        ([f"{ADVERSARY}name=rocl", f"{REMOVAL}rule=fixed"], 15, 12),
        ([f"{ADVERSARY}name=acl", f"{REMOVAL}rule=fixed"], 14, 14),
        ([f"{ADVERSARY}name=acl", f"{ADVERSARY}pairing=a2a", f"{REMOVAL}rule=fixed"], 14, 12),
        ([f"{ADVERSARY}name=acl", f"{ADVERSARY}pairing=a2s", f"{REMOVAL}rule=fixed"], 9, 7),
        (["method.name=supervised", f"{ADVERSARY}name=pgd"], 11, 11),
        (["method.name=supervised", f"{ADVERSARY}name=trades"], 13, 12),
        (
            ["method.name=supervised", f"{ADVERSARY}name=fast"],
            14,
            12,
        ),  # the epoch's first step looks at PGD
        (["method.name=supervised", f"{ADVERSARY}name=free"], 4, 4),
        ([f"{ADVERSARY}name=acl", f"{ADVERSARY}pairing=a2a"], 12, 12),
        ([f"{ADVERSARY}name=dynacl"], 14, 12),
        ([f"{ADVERSARY}name=dynacl", f"{ADVERSARY}key_encoder=false"], 14, 14),
        ([f"{ADVERSARY}name=acl", "method.joint_views=true"], 14, 14),
        ([f"{ADVERSARY}name=acl", f"{ADVERSARY}sir=0.5", f"{ADVERSARY}air=0.5"], 15, 15),
        (["method.name=moco", "method.queue=8", f"{ADVERSARY}name=clae"], 4, 3),
        (["method.name=byol", f"{ADVERSARY}name=taro"], 30, 23),
        (["method.name=simsiam", f"{ADVERSARY}name=taro"], 27, 23),
        (["method.name=distill", "method.teacher=teacher"], 2, 1),
        (["method.name=distill", "method.teacher=teacher", f"{ADVERSARY}name=deacl"], 8, 7),
        (["method.teacher=teacher", f"{ADVERSARY}name=advcl", f"{ADVERSARY}clusters=[2]"], 18, 15),
    ],
)
def test_passes_of_a_step_are_counted(
    ucf, tmp_path, words, forward, backward, teacher, monkeypatch
):
    """In clips a video; docs/methods.md says the same."""
    monkeypatch.chdir(teacher)
    train_state(tiny_config(ucf, *words, "train.max_steps=1"), tmp_path)
    (row,) = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
        if '"train"' in line
    ]
    assert (row["forward"], row["backward"]) == (forward, backward)


def test_clips_that_are_their_own_negatives_are_told(ucf, tmp_path, monkeypatch):
    words = [f"{NEGATIVES}names=[shuffle]", "train.max_steps=1"]
    monkeypatch.setattr("vidrobust.training.step.negatives", lambda x, spec, rngs: 1 - x[:, None])
    train_state(tiny_config(ucf, *words), tmp_path / "moving")
    assert "own negative" not in (tmp_path / "moving/log.txt").read_text()
    monkeypatch.setattr(
        "vidrobust.training.step.negatives", lambda x, spec, rngs: x[:, None].clone()
    )
    train_state(tiny_config(ucf, *words), tmp_path / "still")
    assert (
        "4 of 4 clips of the first batch are their own negative"
        in (tmp_path / "still/log.txt").read_text()
    )


def test_a_schedule_can_be_seen_in_the_log(ucf, tmp_path):
    train_state(
        tiny_config(ucf, f"{ADVERSARY}name=clae", f"{ADVERSARY}schedule=curriculum"), tmp_path
    )
    rows = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
        if '"train"' in line
    ]
    assert [row["eps_share"] for row in rows] == pytest.approx(
        [0.25 + 0.75 * row["step"] / 4 for row in rows]
    )


def test_clusters_of_random_features_are_told(ucf, tmp_path):
    train_state(
        tiny_config(ucf, "method.name=supervised", "method.clusters=2", "train.max_steps=1"),
        tmp_path,
    )
    assert (
        "pseudo-labels are clusters of the features of random weights"
        in (tmp_path / "log.txt").read_text()
    )


@pytest.mark.slow
def test_two_ranks_cluster_the_features_of_one_process(ucf, tmp_path):
    words = ("method.name=supervised", "method.clusters=3", "train.max_steps=1")
    words = (*words, "eval.batch_size=3")
    one = train_state(tiny_config(ucf, *words), tmp_path / "one")
    two = two_ranks(tmp_path, *words, f"data.root={ucf}")
    (key,) = (key for key in one["method"] if key.endswith("pseudo.labels"))
    assert one["method"][key].unique().tolist() == [0, 1, 2]
    assert torch.equal(one["method"][key], two["method"][key])


@pytest.mark.parametrize("name", ["clae", "rocl", "acl", "pgd", "trades", "free"])
def test_a_run_that_diverges_says_so_with_an_adversary(ucf, tmp_path, name):
    words = ["method.name=supervised"] if name in ("pgd", "trades", "free") else []
    with pytest.raises(NonFinite, match="at step [01]; .* batch: "):
        train_state(
            tiny_config(ucf, *words, f"{ADVERSARY}name={name}", "optim.lr=1e30", "optim.warmup=0"),
            tmp_path,
        )


def test_a_run_goes_on_as_it_was_measured(ucf, tmp_path):
    """backbone.pt and model.weights are of eval.branch, and know no selector."""
    words = [
        f"{ADVERSARY}name=clae",
        f"{ADVERSARY}threats=[linf-0.1,l2-1]",
        f"{ADVERSARY}combine=branches",
        f"{ADVERSARY}selector=true",
        "eval.branch=adv2",
    ]
    state = train_state(tiny_config(ucf, *words), tmp_path / "first")
    trunk = checkpoint.backbone_state(str(tmp_path / "first"))
    key = next(key for key in state["model"] if key.endswith(".branches.adv2.running_mean"))
    plain = key.removeprefix("backbone.trunk.").replace(".branches.adv2.", ".")
    assert torch.equal(trunk[plain], state["model"][key]) and not any(
        "selector" in key for key in trunk
    )
    assert equal(trunk, torch.load(tmp_path / "first/backbone.pt"))
    train_state(
        tiny_config(ucf, f"model.weights={tmp_path}/first", "train.max_steps=1"),
        tmp_path / "second",
    )


def test_channels_last_changes_the_order_in_memory_alone(ucf, tmp_path):
    words = ("train.max_steps=1", "optim.lr=0.001")
    plain, last = (
        train_state(tiny_config(ucf, f"train.channels_last={kind}", *words), tmp_path / kind)
        for kind in ("false", "true")
    )
    for key, value in plain["model"].items():
        assert torch.allclose(value.float(), last["model"][key].float(), atol=1e-3), key
    weight = last["model"]["backbone.trunk.0.0.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last_3d) and not weight.is_contiguous()


def test_channels_last_computes_factorised_convolutions_in_two_dimensions():
    cfg = config.loads("", tiny())
    for kind in ("false", "true", "auto"):
        method = build_method(cfg, 2)
        arrange(method, dataclasses.replace(cfg.train, channels_last=kind))
        convolutions = [m for m in method.modules() if isinstance(m, torch.nn.Conv3d)]
        assert convolutions
        assert [("forward" in vars(m)) for m in convolutions] == [kind != "false"] * len(
            convolutions
        )


def test_every_branch_of_a_compiled_trunk_may_have_its_graphs(monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    threats = f"{ADVERSARY}threats=[linf-0.1,l2-1,l1-9,linf-0.2]"
    cfg = config.loads(
        "", [*tiny(), f"{ADVERSARY}name=clae", threats, f"{ADVERSARY}combine=branches"]
    )
    before = torch._dynamo.config.cache_size_limit  # called recompile_limit from torch 2.7 on
    try:
        arrange(build_method(cfg, 2), dataclasses.replace(cfg.train, compile=True))
        assert torch._dynamo.config.cache_size_limit == 20 > before
    finally:
        torch._dynamo.config.cache_size_limit = before


def test_a_compiled_trunk_is_the_same_through_every_branch(ucf, tmp_path, monkeypatch):
    """Without code generation, which takes minutes; the graphs are those that it would get."""
    compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compile(self, backend="eager"))
    words = [f"{ADVERSARY}name=clae", "train.max_steps=2"]
    plain, compiled = (
        train_state(tiny_config(ucf, *words, f"train.compile={kind}"), tmp_path / kind)
        for kind in ("false", "true")
    )
    assert equal(plain["model"], compiled["model"])


def test_a_method_is_told_how_far_training_is(ucf, tmp_path, monkeypatch):
    from vidrobust.methods import SimCLR

    told, whole = [], SimCLR.forward
    monkeypatch.setattr(
        SimCLR, "forward", lambda self, *args: told.append(args[-1]) or whole(self, *args)
    )
    train_state(tiny_config(ucf), tmp_path)
    assert told == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    "rule", ["topk", "quantile", "adaptive_rate", "mean_std", "cluster", "oracle"]
)
def test_labels_are_seen_by_no_rule_but_the_oracle(ucf, tmp_path, monkeypatch, rule):
    """Weights after four steps, with the labels as they are and turned round."""
    from vidrobust.training import setup as start

    build = start.build_records
    turned = lambda cfg, split: (  # noqa: E731
        [
            dataclasses.replace(r, label=1 - r.label) if r.path.endswith("g01_c01.avi") else r
            for r in build(cfg, split)[0]
        ],
        build(cfg, split)[1],
    )
    words = [
        f"{REMOVAL}rule={rule}",
        f"{REMOVAL}siblings=false",
        f"{REMOVAL}k=2",
        f"{REMOVAL}clusters=2",
        f"{REMOVAL}sigmas=0.3",
    ]
    states = [train_state(tiny_config(ucf, *words), tmp_path / "as_it_is")]
    monkeypatch.setattr(start, "build_records", turned)
    states.append(train_state(tiny_config(ucf, *words), tmp_path / "turned"))
    assert equal(*(state["model"] for state in states)) == (rule != "oracle")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["names=[patch]", "patch_px=[72,16]"], "the smallest side must come first"),
        (["names=[patch]", "patch_px=[16,400]"], "as large as a frame of"),
        (["names=[shuffle]", "data.frames=1"], "shuffle changes nothing in a clip of one frame"),
    ],
)
def test_negatives_that_clips_do_not_have_are_refused(ucf, tmp_path, words, reason):
    words = [word if word.startswith("data.") else f"{NEGATIVES}{word}" for word in words]
    with pytest.raises(UserError, match=reason):
        train_state(tiny_config(ucf, *words), tmp_path / "out")


def test_negatives_differ_from_epoch_to_epoch(ucf, tmp_path, monkeypatch):
    seen = []

    def negatives(x, spec, numbers):
        seen.append([tuple(each) for each in numbers.tolist()])
        return x[:, None]

    monkeypatch.setattr("vidrobust.training.step.negatives", negatives)
    train_state(tiny_config(ucf, f"{NEGATIVES}names=[patch]"), tmp_path / "out")
    drawn = [number for batch in seen for number in batch]
    assert len(seen) == 4 and len(set(drawn)) == len(drawn) == 16, "two epochs of eight videos"


def test_negatives_are_the_same_for_any_number_of_workers_and_none_are_none(ucf, tmp_path):
    words = [f"{NEGATIVES}names=[patch,tube_shuffle]"]
    runs = {
        name: train_state(tiny_config(ucf, *more), tmp_path / name)
        for name, more in {
            "here": words,
            "workers": [*words, "data.workers=2"],
            "alpha": [*words, f"{NEGATIVES}alpha=0"],
            "count": [*words, f"{NEGATIVES}count=0"],
            "plain": [],
        }.items()
    }

    def weights(name):
        return runs[name]["model"]

    assert equal(weights("here"), weights("workers"))
    assert equal(weights("alpha"), weights("plain")) and equal(weights("count"), weights("plain"))
    assert not equal(weights("here"), weights("plain"))
    rows = [json.loads(line) for line in (tmp_path / "here/metrics.jsonl").read_text().splitlines()]
    assert all(-1 <= row["negative_cosine"] <= 1 for row in rows if row["split"] == "train")


@pytest.mark.parametrize("words", [(), (f"{ADVERSARY}name=clae",)], ids=["simclr", "clae"])
def test_memory_can_be_saved_and_the_run_resumed_bitwise(ucf, tmp_path, words):
    saves = ("train.micro_batch=2", "train.checkpoint_activations=true", "train.checkpoint_every=1")
    cfg = tiny_config(ucf, *words, *saves, "train.keep=9")
    whole = train_state(cfg, tmp_path / "whole")
    resumed = train_state(
        cfg, tmp_path / "resumed", tmp_path / "whole/checkpoints/step_00000002.pt"
    )
    for key in whole:
        assert equal(whole[key], resumed[key]), key
    # batch norms of two clips are others than those of the whole batch, and nothing else differs
    kept = train_state(tiny_config(ucf, *words, *saves[1:]), tmp_path / "kept")
    assert whole["model"].keys() == kept["model"].keys()
    assert not equal(whole["model"], kept["model"])


def test_blocks_that_are_computed_again_train_as_before(ucf, tmp_path):
    words = (f"{ADVERSARY}name=clae", "train.max_steps=2")
    again, kept = (
        train_state(
            tiny_config(ucf, *words, f"train.checkpoint_activations={kind}"), tmp_path / kind
        )
        for kind in ("true", "false")
    )
    assert equal(again["model"], kept["model"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "error"),
    # the sign of a pixel's gradient, which CLAE follows, is rounding alone where that is near 0
    [((), 1e-4), ((f"{ADVERSARY}name=clae",), 1e-2)],
    ids=["simclr", "clae"],
)
def test_micro_batches_of_two_ranks_are_those_of_one_process(ucf, tmp_path, words, error):
    """The halves of a batch have the same parts of two clips, so that also batch norms agree."""
    # at 16 px the last norms see two numbers, whose gradient is rounding alone
    words = (*words, "data.size=64", "data.short_side=64")
    words = (*words, "train.batch_size=8", "train.micro_batch=2", "train.max_steps=1")
    # one step of plain SGD: weights show the gradient
    words = (*words, "optim.name=sgd", "optim.momentum=0", "optim.warmup=0")
    one = train_state(tiny_config(ucf, *words, "optim.lr=1"), tmp_path / "one")
    ours = two_ranks(tmp_path, *words, "optim.lr=1", f"data.root={ucf}")
    names = [key for key, value in one["model"].items() if value.is_floating_point()]
    weights = [key for key in names if "running_" not in key]  # rank 0 saw its own parts alone
    start = train_state(tiny_config(ucf, *words, "optim.lr=1e-30"), tmp_path / "start")["model"]
    for key in weights:
        moved = (one["model"][key] - start[key]).norm()
        assert moved > 1e-3, key
        allowed = error * max(float(moved), 0.1)
        assert (one["model"][key] - ours["model"][key]).norm() < allowed, key


@pytest.mark.slow
def test_a_resume_with_another_number_of_ranks_takes_the_steps_of_the_first(ucf, tmp_path):
    """SimCLR's loss of the whole batch, in a network whose norms see one clip."""
    tiny_videomae(tmp_path / "vit", num_hidden_layers=1, image_size=16, patch_size=8)
    words = [f"model.backbone=hf:{tmp_path / 'vit'}", "model.width=0", "optim.lr=0.1"]
    words += ["train.checkpoint_every=1", "train.keep=9"]
    cfg = tiny_config(ucf, *words)
    words.append(f"data.root={ucf}")
    (tmp_path / "two").mkdir()
    (tmp_path / "one_then_two").mkdir()
    states = {"one": train_state(cfg, tmp_path / "one"), "two": two_ranks(tmp_path / "two", *words)}
    after_two = "checkpoints/step_00000002.pt"
    states["two_then_one"] = train_state(
        cfg, tmp_path / "two_then_one", tmp_path / "two/out" / after_two
    )
    resume = f"--resume={tmp_path / 'one' / after_two}"
    states["one_then_two"] = two_ranks(tmp_path / "one_then_two", *words, resume)
    expected = {row["step"]: row["loss"] for row in read_metrics(tmp_path / "one")}
    assert len(expected) == 4 and len(set(expected.values())) == 4
    start = torch.load(tmp_path / "one/checkpoints/step_00000001.pt", weights_only=True)
    for name, folder in (
        ("two", "two/out"),
        ("two_then_one", "two_then_one"),
        ("one_then_two", "one_then_two/out"),
    ):
        losses = {row["step"]: row["loss"] for row in read_metrics(tmp_path / folder)}
        assert losses == pytest.approx({step: expected[step] for step in losses}, rel=1e-5), name
        assert {2, 3} <= losses.keys(), name
        for key, value in states["one"]["model"].items():
            moved = (value - start["model"][key]).norm()
            assert (states[name]["model"][key] - value).norm() <= 1e-3 * moved + 1e-6, (name, key)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.micro_batch=3"], "train.micro_batch=3 does not divide the batch, 4 videos; set 2"),
        (["train.micro_batch=1"], "batch norms need two clips at a time; set at least 2"),
        (["train.micro_batch=8"], "set 4, or 0 for the whole batch"),
    ],
)
def test_micro_batches_that_do_not_divide_the_batch_are_refused(ucf, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        train_state(tiny_config(ucf, "train.batch_size=4", *words), tmp_path / "run")
    assert not any((tmp_path / "run").iterdir())


def test_a_batch_of_prime_size_is_not_offered_micro_batches_of_one_clip():
    cfg = config.loads("", tiny())
    train = dataclasses.replace(cfg.train, batch_size=5, micro_batch=3)
    with pytest.raises(UserError, match="5 videos; set 0 for the whole batch"):
        arrange(build_method(cfg, 2), train)


def test_micro_batches_of_one_clip_are_allowed_where_only_heads_have_batch_norms():
    cfg = config.loads("", tiny())
    method = build_method(cfg, 2)
    method.projector_norm = torch.nn.BatchNorm1d(4)
    method.model.backbone = Backbone(BackboneParts(torch.nn.Flatten(), 8, (0.0,) * 3, (1.0,) * 3))
    method.model.head = torch.nn.Linear(8, 2)  # has parameters, so that it has a device
    arrange(method, dataclasses.replace(cfg.train, micro_batch=1))
    assert method.model.backbone.micro_batch == 1


def test_a_network_without_blocks_cannot_compute_them_again():
    cfg = config.loads("", tiny())
    method = build_method(cfg, 2)
    flat = torch.nn.Flatten()
    method.model.backbone = Backbone(BackboneParts(flat, 8, (0.0,) * 3, (1.0,) * 3))
    with pytest.raises(UserError, match="checkpoint_activations=true: this network has no list"):
        arrange(method, dataclasses.replace(cfg.train, checkpoint_activations=True))


def test_a_run_and_its_replay_compute_with_the_same_threads(ucf, tmp_path, monkeypatch):
    """Both are set up by `build_run`."""
    chosen = []
    monkeypatch.setattr(
        "vidrobust.training.setup.use_threads",
        lambda workers, ranks, seldom: chosen.append((workers, ranks)),
    )
    build_run(tiny_config(ucf, "data.workers=3"), tmp_path, torch.device("cpu"), None)
    assert chosen == [(3, 1)]


@pytest.mark.parametrize(("workers", "seldom"), [(0, False), (1, False), (1, True)])
def test_loaders_make_the_views_of_networks_that_leave_them_a_core(
    ucf, tmp_path, monkeypatch, workers, seldom
):
    monkeypatch.setattr("vidrobust.training.setup.loads_seldom", lambda *_: seldom)
    cfg = tiny_config(ucf, f"data.workers={workers}", "device=cpu")
    run = build_run(cfg, tmp_path, torch.device("cpu"), None)
    assert run.dataset.views == (workers > 0 and not seldom)
