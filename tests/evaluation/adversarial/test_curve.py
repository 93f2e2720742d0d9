from dataclasses import replace

from vidrobust.attacks import parse_threat
from vidrobust.evaluation import AttackRow
from vidrobust.evaluation.adversarial.curve import (
    median_norms,
    robust_curve,
    robust_to_all,
    suite_warnings,
)

THREATS = [parse_threat("linf-1/255"), parse_threat("flicker-linf-8/255")]


def _row(index, threat, killer, **more):
    row = AttackRow(
        index=index,
        uid=str(index),
        label=1,
        clean_pred=1,
        threat=str(threat),
        eps=threat.eps,
        adv_pred=1,
        robust=killer is None,
        killed_by=killer,
        uint8_pred=1 if killer is None else 0,
        uint8_killed_by=killer,
        h264_pred=1,
        measured=0.001,
        in_budget=True,
    )
    return replace(row, **more)


def test_counts_intervals_and_passes_are_of_each_threat():
    rows = [
        _row(0, THREATS[0], None, passes={"pgd": [10, 9]}),
        _row(0, THREATS[1], "pgd", measured=0.03),
        _row(1, THREATS[0], "pgd", passes={"pgd": [5, 4], "square": [7, 0]}),
        _row(1, THREATS[1], None),
        _row(2, THREATS[0], None),
        _row(2, THREATS[1], None, in_budget=False, rejected={"pgd": 2}),
        _row(
            3, THREATS[0], "error", measured=None, in_budget=None, h264_pred=None, uint8_pred=None
        ),
        _row(
            3, THREATS[1], "error", measured=None, in_budget=None, h264_pred=None, uint8_pred=None
        ),
    ]
    first, second = robust_curve(rows, THREATS)
    assert first.robust_acc == 0.5 and first.n == 4 and first.robust_acc_uint8 == 0.5
    assert first.killed_by == {"pgd": 1, "error": 1} and first.passes == {
        "pgd": [15, 13],
        "square": [7, 0],
    }
    assert first.ci95[0] < 0.5 < first.ci95[1] and second.max_measured == 0.03
    assert second.out_of_budget == 1 and second.rejected == {"pgd": 2}
    assert robust_to_all(rows) == [False, False, True, False]
    said = suite_warnings(rows, [first, second])
    assert any("1 adversarial clips exceed flicker-linf-8/255" in line for line in said)
    assert any("2 clips of pgd were outside of the budget" in line for line in said)


def test_black_boxes_that_beat_white_boxes_are_told_per_threat():
    def rows(killers, passes):
        return [
            _row(i, THREATS[0], killer, passes={} if i else passes)
            for i, killer in enumerate(killers)
        ]

    both = {"apgd-ce": [1, 1], "square": [1, 0]}
    beaten = rows(["square"] * 5 + [None] * 5, both)
    assert any(
        "black-box attacks broke 5 of 10" in s
        for s in suite_warnings(beaten, robust_curve(beaten, THREATS[:1]))
    )
    alone = rows(["square"] * 5 + [None] * 5, {"square": [1, 0]})
    assert (
        suite_warnings(alone, robust_curve(alone, THREATS[:1])) == []
    )  # no white-box attack ran before it
    parts = rows(["apgd-tube"] * 5 + [None] * 5, both | {"apgd-tube": [1, 1]})
    assert any(
        "parts of the threat" in s for s in suite_warnings(parts, robust_curve(parts, THREATS[:1]))
    )


def test_the_median_of_smallest_changes_is_over_what_is_right_and_unbroken_ones_are_far():
    small, large = THREATS[0], parse_threat("linf-8/255")

    def rows(killers, sizes):
        return [
            _row(i, t, killer, measured=size)
            for i, (killer, size) in enumerate(zip(killers, sizes, strict=True))
            for t in (small, large)
        ]

    broken = rows(["fmn", "fmn", "fmn", None], [0.01, 0.03, 0.02, 0.0])
    assert median_norms(broken, [small, large]) == {"linf": 0.025}
    assert median_norms(rows(["fmn", None, None], [0.01, 0.0, 0.0]), [small, large]) == {
        "linf": None
    }
    wrong = [_row(9, t, "clean", measured=0.0, clean_pred=0) for t in (small, large)]
    failed = [_row(8, t, "error", measured=None, clean_pred=None) for t in (small, large)]
    assert median_norms(broken + wrong + failed, [small, large]) == {"linf": 0.025}
