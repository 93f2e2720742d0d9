import itertools
import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.evaluation.helpers import CFG, attacked_rows
from tests.helpers import tiny_ucf101
from vidrobust.attacks import ThreatModel, parse_threat
from vidrobust.config import DataConfig
from vidrobust.data import eval_dataset, source_videos, ucf101
from vidrobust.evaluation import Suite, robust_curve
from vidrobust.evaluation.adversarial.curve import median_norms, robust_to_all, suite_warnings
from vidrobust.evaluation.adversarial.rows import carry_breaks, timings
from vidrobust.evaluation.adversarial.suites import families
from vidrobust.utils.errors import UserError

ROWS = sys.modules["vidrobust.evaluation.adversarial.rows"]
EPS = (0.0, 2.4 / 255, 16 / 255, 1.0)
THREATS = [ThreatModel("linf", eps) for eps in EPS]


def _net():
    """Random weights made sensitive: it classifies some test videos right, and small budgets break
    some.
    """
    torch.manual_seed(4)
    net = nn.Sequential(nn.Flatten(1), nn.Linear(3 * 2 * 256, 2)).eval().requires_grad_(False)
    return net


def _run(root, out, net=None, **options):
    out.mkdir(exist_ok=True)
    records, _ = ucf101(root, "test", 1)
    settings = {
        "suite": Suite("pgd", steps=3),
        "seed": 0,
        "batch_size": 3,
        "workers": 0,
        "device": torch.device("cpu"),
    }
    threats = options.pop("threats", THREATS)
    videos = eval_dataset(CFG, records, 1)
    return attacked_rows(
        net or _net(), videos, range(len(records)), threats, out, **(settings | options)
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny_ucf101(tmp_path_factory.mktemp("r"), train=1, test=5)


def test_eps_0_is_clean_accuracy_and_the_curve_never_rises(root, tmp_path):
    rows = _run(root, tmp_path)
    assert len(rows) == 40 and [row.to_json() for row in rows] == [
        json.loads(line) for line in open(tmp_path / "results.jsonl")
    ]
    curve = robust_curve(rows, THREATS)
    clean = sum(r.clean_pred == r.label for r in rows[::4]) / 10
    assert curve[0].robust_acc == clean == curve[0].robust_acc_uint8 and clean > 0
    accuracies = [c.robust_acc for c in curve]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[-1] == 0
    assert all(r.in_budget and r.measured <= r.eps + 1e-6 for r in rows)
    assert all(c.out_of_budget == 0 and c.max_measured <= c.eps + 1e-6 for c in curve)


def test_rows_say_who_broke_the_sample(root, tmp_path):
    for row in _run(root, tmp_path):
        right = row.clean_pred == row.label
        assert row.robust == (right and row.adv_pred == row.label)
        assert row.killed_by == (None if row.robust else "pgd" if right else "clean")


@pytest.mark.parametrize("kept", [0, 1, 8, 11, 12, 29, 39])
def test_killed_at_any_row_it_goes_on_to_the_same_bytes(root, tmp_path, kept):
    _run(root, tmp_path / "whole", pictures=1)
    lines = (tmp_path / "whole/results.jsonl").read_text().splitlines(keepends=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    cut = tmp_path / "cut/results.jsonl"
    cut.write_text("".join(lines[:kept]) + lines[kept][:20])  # the kill tore a line in two
    rows = _run(root, tmp_path / "cut", pictures=1)
    assert cut.read_text() == "".join(lines) and len(rows) == 40
    names = [sorted(p.name for p in (tmp_path / d / "clips").iterdir()) for d in ("whole", "cut")]
    assert names[0] == names[1] and len(names[0]) == 1


def test_a_finished_evaluation_costs_nothing(root, tmp_path):
    rows = _run(root, tmp_path)

    def never(x):
        raise AssertionError

    assert _run(root, tmp_path, net=never) == rows


def test_a_broken_sample_is_not_attacked_again(root, tmp_path):
    net, sizes = _net(), []

    def counted(x):
        sizes.append(len(x))
        return net(x)

    rows = _run(root, tmp_path, net=counted, batch_size=10)
    again = _run(root, tmp_path)
    assert again == rows
    spent = sum(forward for row in rows for forward, _ in row.passes.values())
    left = {
        str(t): [r.robust or r.uint8_pred == r.label for r in rows if r.threat == str(t)]
        for t in THREATS
    }
    for before, threat in itertools.pairwise(THREATS):
        alive = sum(left[str(before)])
        here = sum(f for r in rows if r.threat == str(threat) for f, _ in r.passes.values())
        assert (
            here <= 4 * alive + 4 * alive
        )  # steps + 1 passes of those left, and of their rounded clips at most
        assert (here > 0) == (alive > 0)
    assert spent < sum(sizes)


def test_a_video_that_does_not_decode_is_a_failed_row_and_a_miss(tmp_path):
    root = tiny_ucf101(tmp_path / "data", train=1, test=2)
    whole = robust_curve(_run(root, tmp_path / "a"), THREATS)
    records, _ = ucf101(root, "test", 1)
    open(records[0].path, "w").close()
    rows = _run(root, tmp_path / "b")
    bad = [r for r in rows if r.uid == records[0].uid]
    assert len(bad) == 4 and all(
        r.killed_by == "error" and not r.robust and "is empty" in r.error for r in bad
    )
    assert robust_curve(rows, THREATS)[0].n == whole[0].n == 4


def test_accuracy_after_rounding_does_not_gain_from_smaller_budgets(root, tmp_path):
    """A budget of 0.4/255 vanishes when rounded; what it breaks must still be attacked at the next
    one.
    """
    found = []
    for name, budgets in (("alone", [1.0]), ("both", [0.4 / 255, 1.0])):
        threats = [ThreatModel("linf", eps) for eps in budgets]
        rows = _run(
            root,
            tmp_path / name,
            net=lambda x: 100 * _net()(x),
            threats=threats,
            suite=Suite("pgd", steps=9),
        )
        found.append(robust_curve(rows, threats))
    assert found[0][-1].robust_acc_uint8 == found[1][-1].robust_acc_uint8 == 0
    assert found[1][0].robust_acc_uint8 > 0
    assert all(
        c.killed_by.get("pgd", 0) + c.killed_by.get("clean", 0) == 10
        for curve in found
        for c in curve[-1:]
    )


MANY = [
    parse_threat(name)
    for name in ("flicker-linf-16/255", "linf-8/255", "flicker-linf-4/255", "frames1-l2-0.5")
]


def test_families_are_curves_of_their_own(root, tmp_path):
    """Each threat's rows are what an evaluation of that threat alone has, family by family, small
    to large.
    """
    ordered = [t for family in families(MANY) for t in family]
    assert [str(t) for t in ordered] == [
        "flicker-linf-4/255",
        "flicker-linf-16/255",
        "linf-8/255",
        "frames1-l2-0.5",
    ]
    rows = _run(root, tmp_path, threats=MANY)
    assert [r.threat for r in rows[:4]] == [str(t) for t in ordered]
    for row in rows:
        assert row.in_budget and row.robust is (row.killed_by is None)
    curve = {c.threat: c.robust_acc for c in robust_curve(rows, ordered)}
    assert curve["flicker-linf-16/255"] <= curve["flicker-linf-4/255"]
    withstood = robust_to_all(rows)
    assert len(withstood) == 10 and sum(withstood) / 10 <= min(curve.values())


@pytest.mark.parametrize("name", ["autoattack", "video", "square", "fmn", "frame-saliency"])
def test_suites_and_single_attacks_by_name(root, tmp_path, name):
    suite = Suite(name, steps=4, queries=20, effort=0.03)
    rows = _run(root, tmp_path, suite=suite)
    attacks = {key for row in rows for key in row.passes}
    expected = {"autoattack": {"apgd-ce", "apgd-t", "fab-t", "square"}}.get(name)
    assert attacks <= expected if expected else attacks
    assert robust_curve(rows, THREATS)[-1].robust_acc < robust_curve(rows, THREATS)[0].robust_acc
    assert all(r.killed_by in (None, "clean", *attacks) for r in rows)
    seconds = timings(tmp_path)
    assert {key for threat in seconds.values() for key in threat} == attacks


def test_suites_say_what_they_are():
    assert (
        str(Suite("pgd", steps=50, restarts=2)) == "pgd-50x2"
        and str(Suite("square", queries=99)) == "square-99x1"
    )
    assert (
        str(Suite("autoattack")) == "autoattack"
        and str(Suite("video", effort=0.1)) == "video, effort 0.1"
    )
    with pytest.raises(
        UserError, match="eval.suite: unknown name 'autoatack'; did you mean 'autoattack'"
    ):
        Suite("autoatack")(ThreatModel(), 8, 10)


def test_a_threat_that_does_not_fit_stops_with_its_name(root, tmp_path):
    with pytest.raises(
        UserError, match="pgd-3x1 under frames5-linf-8/255: .*5 frames of a clip of 2"
    ):
        _run(root, tmp_path, threats=[parse_threat("frames5-linf-8/255")])
    with pytest.raises(UserError, match="leave out its softmax"):
        _run(root, tmp_path, net=lambda x: _net()(x).softmax(1))


def test_h264_gets_the_frame_rate_of_the_clip(root, tmp_path, monkeypatch):
    """A clip of every second frame has half the rate of its video, which is 25."""
    seen = []
    original = ROWS.h264
    monkeypatch.setattr(
        ROWS, "h264", lambda clip, crf, fps: seen.append(fps) or original(clip, crf, fps)
    )
    _run(root, tmp_path, h264_crf=30)
    assert set(seen) == {round(25 / CFG.stride)}


def test_a_video_broken_in_an_earlier_call_is_broken_under_larger_budgets(root, tmp_path):
    """Attacks of a later call begin anew, and may fail where a smaller budget was enough."""
    rows = _run(root, tmp_path, threats=THREATS[:3])
    small, large = str(THREATS[1]), str(THREATS[2])
    victim = next(row for row in rows if row.threat == small and row.clean_right and not row.robust)
    in_vain = [
        replace(row, robust=True, killed_by=None, uint8_killed_by=None, adv_pred=row.label)
        if (row.index, row.threat) == (victim.index, large)
        else row
        for row in rows
    ]
    carried = carry_breaks(in_vain, families(THREATS[:3]))
    (row,) = [row for row in carried if (row.index, row.threat) == (victim.index, large)]
    assert (row.robust, row.killed_by, row.adv_pred) == (False, victim.killed_by, victim.adv_pred)
    assert row.uint8_killed_by == victim.uint8_killed_by and row.measured == victim.measured
    # nothing else changes, and nothing does where one call made all rows
    assert [each for each in carried if each != row] == [
        each for each in in_vain if (each.index, each.threat) != (victim.index, large)
    ]
    assert carry_breaks(rows, families(THREATS[:3])) == rows
    # budgets of another family say nothing
    alone = [replace(each, threat="l2-1") if each.threat == small else each for each in in_vain]
    other = [parse_threat("l2-1"), THREATS[2]]
    assert carry_breaks(alone, families(other)) == alone


def test_predictions_after_h264(root, tmp_path):
    rows = _run(root, tmp_path, h264_crf=30)
    assert all(isinstance(row.h264_pred, int) for row in rows)
    curve = robust_curve(rows, THREATS)
    assert 0 <= curve[0].robust_acc_h264 <= 1 and curve[-1].robust_acc_h264 < 1
    before = [row.clean_h264_pred for row in rows]
    assert (
        before[::4] == before[1::4] == [row.h264_pred for row in rows[::4]]
    )  # at eps 0 the clip is the clip
    without = _run(root, tmp_path / "without")
    assert robust_curve(without, THREATS)[0].robust_acc_h264 is None
    assert all(row.clean_h264_pred is None for row in without)


def test_pictures_are_kept_threat_by_threat(root, tmp_path):
    _run(root, tmp_path, threats=MANY, pictures=2)
    names = sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "clips").iterdir())
    assert set(names) <= {"flicker-linf", "linf", "frames1-l2"} and all(
        names.count(n) <= 2 for n in names
    )
    assert "linf" in names


def _sources(root, clips=3, frames=2):
    records, _ = ucf101(root, "test", 1)
    return source_videos(DataConfig(**(vars(CFG) | {"frames": frames})), records, clips)


@pytest.mark.parametrize("crops", [1, 3])
def test_videos_are_attacked_through_the_average_of_their_views(root, tmp_path, crops):
    threats = [ThreatModel("linf", eps) for eps in (0.0, 4 / 255, 1.0)]
    rows = attacked_rows(
        _net(),
        _sources(root),
        list(range(10)),
        threats,
        tmp_path,
        suite=Suite("pgd", steps=4),
        seed=0,
        batch_size=2,
        workers=0,
        device=torch.device("cpu"),
        crops=crops,
        pictures=1,
    )
    assert len(rows) == 30 and all(row.in_budget for row in rows)
    accuracies = [c.robust_acc for c in robust_curve(rows, threats)]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[-1] == 0 < accuracies[0]
    passes = sum(f for row in rows for f, _ in row.passes.values())
    assert (
        passes % (3 * crops) == 0 and 0 < passes <= 2 * 10 * 10 * 3 * crops
    )  # each of all clips and crops


@pytest.mark.parametrize("name", ["fmn", "fab"])
def test_one_run_of_a_smallest_perturbation_is_the_whole_curve(root, tmp_path, name):
    threats = [
        ThreatModel("linf", eps) for eps in (0.0, 0.2 / 255, 2 / 255, 8 / 255, 64 / 255, 1.0)
    ]
    rows = _run(root, tmp_path, threats=threats, suite=Suite(name, steps=60), batch_size=10)
    curve = robust_curve(rows, threats)
    accuracies = [c.robust_acc for c in curve]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[-1] == 0 < accuracies[0]
    assert [bool(c.passes) for c in curve] == [False, True, False, False, False, False]
    assert list(timings(tmp_path)) == [str(threats[1])]
    rounded_off = [c.robust_acc_uint8 for c in curve]
    assert (
        rounded_off == sorted(rounded_off, reverse=True) and rounded_off[-1] == 0 < rounded_off[0]
    )
    for row in rows:
        assert row.in_budget and (row.robust or row.killed_by in (name, "clean"))
        assert row.killed_by != name or 0 < row.measured <= row.eps * (1 + 1e-5)
    sizes = sorted(r.measured for r in rows if r.eps == 1 and r.clean_pred == r.label)
    middle = (sizes[(len(sizes) - 1) // 2] + sizes[len(sizes) // 2]) / 2
    assert median_norms(rows, threats) == {"linf": pytest.approx(middle)}


def test_one_run_agrees_with_a_run_at_each_budget(root, tmp_path):
    """On a linear model FMN is exact: the curve in one run is that of PGD at each budget."""
    threats = [ThreatModel("linf", eps) for eps in (0.3 / 255, 1 / 255, 3 / 255, 9 / 255)]
    one = robust_curve(
        _run(root, tmp_path / "one", threats=threats, suite=Suite("fmn", steps=100)), threats
    )
    each = robust_curve(
        _run(root, tmp_path / "each", threats=threats, suite=Suite("pgd", steps=40)), threats
    )
    assert [c.robust_acc for c in one] == [c.robust_acc for c in each]
    assert [c.robust_acc_uint8 for c in one] == [c.robust_acc_uint8 for c in each]


def _clip(root, index):
    records, _ = ucf101(root, "test", 1)
    return eval_dataset(CFG, records, 1)[0, index]["clips"].float().div(255).permute(0, 4, 1, 2, 3)


def _is(x, clip):
    """(B,) whether each is that clip, up to small changes."""
    return (x - clip).abs().flatten(1).amax(1) < 8 / 255


def _bad(kind, root, index):
    """A model that gives no finite numbers on one video: at once, or under attack."""
    net, clip = _net(), _clip(root, index)

    def predict(x):
        hit, logits = _is(x, clip), net(x)
        moved = (x - clip).detach().abs().flatten(1).amax(1) > 1e-6
        if kind == "logits":
            return torch.where(hit.unsqueeze(1), torch.nan, logits)
        if kind == "infinite":
            return torch.where(hit.unsqueeze(1), torch.inf, logits)
        if kind == "on the way":
            return torch.where((hit & moved).unsqueeze(1), torch.nan, logits)
        black = torch.where(hit, 0 * x[:, 0, 0, 0, 0], 1.0)
        return logits + black.sqrt().unsqueeze(
            1
        )  # the gradient of a root at 0 is infinite, times 0

    return predict


def _right(root):
    """A video that the model classifies right, in the middle of a batch of three."""
    rows = [
        index for index in (1, 4, 7) if int(_net()(_clip(root, index)).argmax(1)) == int(index >= 5)
    ]
    return rows[0]


@pytest.mark.parametrize("suite", ["pgd", "autoattack", "fmn", "fab", "square"])
@pytest.mark.parametrize("kind", ["logits", "infinite", "on the way", "gradient"])
def test_a_clip_without_finite_numbers_is_a_failed_row_and_the_others_are_measured(
    root, tmp_path, suite, kind
):
    index, threats = _right(root), [ThreatModel("linf", eps) for eps in (2.4 / 255, 4 / 255)]
    options = {"threats": threats, "suite": Suite(suite, steps=3, queries=20, effort=0.03)}
    if kind == "gradient" and suite == "square":
        pytest.skip("Square takes no gradient")
    rows = _run(root, tmp_path / "bad", net=_bad(kind, root, index), **options)
    assert [row.index for row in rows] == [i for i in range(10) for _ in threats]
    bad = [row for row in rows if row.error]
    assert [row.index for row in bad] == [index, index]
    records, _ = ucf101(root, "test", 1)
    for row in bad:
        assert row.error.startswith(f"{records[index].uid}: no finite numbers from the model: ")
        assert (row.killed_by, row.robust, row.clean_pred) == ("error", False, None)
    sound = _run(root, tmp_path / "sound", **options)
    clean = [(r.index, r.clean_pred, r.label) for r in sound if r.index != index]
    assert [(r.index, r.clean_pred, r.label) for r in rows if r.index != index] == clean
    said = suite_warnings(rows, robust_curve(rows, threats))
    assert any(
        "1 of 10 videos count as wrong, because the model gives NaN or infinity" in line
        for line in said
    )


def test_a_clip_without_finite_numbers_resumes_with_the_same_bytes(root, tmp_path):
    index = _right(root)
    _run(root, tmp_path / "whole", net=_bad("on the way", root, index), pictures=2)
    lines = (tmp_path / "whole/results.jsonl").read_text().splitlines(keepends=True)
    for kept in (0, 5, 13, 25):
        cut = tmp_path / f"cut{kept}"
        shutil.copytree(tmp_path / "whole", cut)
        (cut / "results.jsonl").write_text("".join(lines[:kept]) + lines[kept][:9])
        _run(root, cut, net=_bad("on the way", root, index), pictures=2)
        assert (cut / "results.jsonl").read_text() == "".join(lines)
        names = [
            sorted(p.name for p in (folder / "clips").iterdir())
            for folder in (tmp_path / "whole", cut)
        ]
        assert names[0] == names[1]
        assert f"linf-{index:06d}.npz" not in names[0]


def test_a_model_of_nan_has_no_video_right_and_a_warning(root, tmp_path):
    rows = _run(root, tmp_path, net=lambda x: torch.full((len(x), 2), torch.nan))
    curve = robust_curve(rows, THREATS)
    assert [c.robust_acc for c in curve] == [0, 0, 0, 0]
    assert all(row.clean_pred is None for row in rows)
    assert any(
        "10 of 10 videos count as wrong, because the model gives NaN" in s
        for s in suite_warnings(rows, curve)
    )


@pytest.mark.parametrize(
    ("label", "told"), [(-1, "label=-1 of"), (2, "label=2 of"), (99, "label=99 of")]
)
def test_labels_that_the_model_has_no_logit_for_are_refused(root, tmp_path, label, told):
    records, _ = ucf101(root, "test", 1)
    changed = [replace(records[0], label=label), *records[1:]]
    with pytest.raises(
        UserError,
        match=f"{told} {records[0].uid}: the model has classes 0 to 1; leave the video out",
    ):
        attacked_rows(
            _net(),
            eval_dataset(CFG, changed, 1),
            [0, 1],
            THREATS,
            tmp_path,
            suite=Suite("pgd", steps=2),
            seed=0,
            batch_size=2,
            workers=0,
            device=torch.device("cpu"),
        )


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (
            lambda net: lambda x: (net(x), None),
            r"predict returns a tuple .*; give lambda x: model\(x\)\[0\]",
        ),
        (lambda net: lambda x: {"logits": net(x)}, r"give lambda x: model\(x\)\['logits'\]"),
        (
            lambda net: lambda x: net(x.sub_(0.1)),
            r"writes into its input .*give lambda x: model\(x.clone\(\)\)",
        ),
        (lambda net: lambda x: net(x)[:, :1], "logits of 2 classes or more"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_classifier_of_clips_is_refused_in_a_line(root, tmp_path, wrap, told):
    with pytest.raises(UserError, match=told):
        _run(root, tmp_path, net=wrap(_net()))


def test_a_model_that_writes_past_autograd_is_refused_of_clean_clips(root, tmp_path):
    """Nothing is attacked at a budget of 0."""
    net = _net()

    def predict(x):
        x.data.mul_(0.5)
        return net(x)

    with pytest.raises(UserError, match="writes into its input"):
        _run(root, tmp_path, net=predict, threats=THREATS[:1])
