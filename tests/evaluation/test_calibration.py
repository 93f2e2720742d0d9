"""Calibration: closed forms, a plain loop, and rows of attacks."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from tests.evaluation.helpers import random_model, robust_rows
from tests.helpers import tiny_ucf101
from vidrobust.attacks import parse_threat
from vidrobust.config import DataConfig
from vidrobust.data import build_records
from vidrobust.evaluation.adversarial.attack_row import AttackRow
from vidrobust.evaluation.calibration import (
    BINS,
    calibration_interval,
    calibration_of,
    expected_calibration_error,
    reliability,
)
from vidrobust.evaluation.report.calibration_tables import calibration_lines
from vidrobust.utils.intervals import bootstrap_interval, mean_interval

THREATS = [parse_threat("linf-1/255"), parse_threat("linf-8/255")]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    root = tiny_ucf101(tmp_path_factory.mktemp("calibration"), train=1, test=3)
    return build_records(DataConfig(name="ucf101", root=str(root)), "test")[0]


def _row(confidence, brier, right, threat="linf-1/255", **fields):
    row = AttackRow(0, "a", 1, int(right), threat, 0.0, int(right), right, None, 0, None)
    both = {"clean_confidence": confidence, "adv_confidence": confidence}
    both |= {"clean_brier": brier, "adv_brier": brier}
    return dataclasses.replace(row, **(both | fields))


def test_always_right_with_confidence_one_is_calibrated():
    assert expected_calibration_error(reliability([1.0] * 5, [True] * 5)) == 0


def test_always_wrong_with_confidence_one_has_the_largest_error():
    assert expected_calibration_error(reliability([1.0] * 5, [False] * 5)) == 1


def test_a_fair_coin_with_confidence_09_is_off_by_04():
    curve = reliability([0.9] * 10, [True, False] * 5)
    assert expected_calibration_error(curve) == pytest.approx(0.4)


def test_errors_of_bins_are_weighted_by_their_predictions():
    """3 predictions of 0.5, all right; 1 prediction of 0.9, wrong."""
    curve = reliability([0.5, 0.5, 0.5, 0.9], [True, True, True, False])
    assert expected_calibration_error(curve) == pytest.approx((3 * 0.5 + 1 * 0.9) / 4)


def test_the_error_is_that_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(500, generator=generator).double().tolist()
    right = (torch.rand(500, generator=generator) < 0.6).tolist()
    total = 0.0
    for m in range(1, 16):
        members = [i for i, p in enumerate(confidence) if (m - 1) / 15 < p <= m / 15]
        if members:
            accuracy = sum(right[i] for i in members) / len(members)
            mean = sum(confidence[i] for i in members) / len(members)
            total += len(members) / 500 * abs(accuracy - mean)
    assert expected_calibration_error(reliability(confidence, right)) == pytest.approx(total)


def test_a_bin_contains_its_upper_end():
    """Guo et al. 2017: I_m = ((m - 1) / M, m / M]."""
    curve = reliability([0.5, 0.5 + 1e-9, 0.0, 1.0], [True] * 4, bins=2)
    assert [each.count for each in curve] == [2, 2]


def test_an_empty_bin_has_neither_confidence_nor_accuracy():
    curve = reliability([0.99], [True])
    assert len(curve) == BINS == 15
    assert (curve[0].count, curve[0].confidence, curve[0].accuracy) == (0, None, None)


@pytest.mark.parametrize("frames", [1, 2])
def test_rows_hold_the_probabilities_of_the_model(records, tmp_path, frames):
    cfg = DataConfig(frames=frames, stride=2, short_side=20, size=16, workers=0)
    seen = []
    net = random_model(1)

    def model(x):
        logits = net(x if frames == 2 else x.repeat(1, 1, 2, 1, 1))
        seen.append(logits.detach())
        return logits

    rows = robust_rows(
        records, tmp_path, model, threats=THREATS, cfg=cfg, identity="fixed", batch_size=1
    )
    all_logits = torch.cat(seen)
    for row in rows:
        # two classes: p and 1 - p, so that the Brier score is 2 (1 - p of the label)^2
        for name, predicted in (("clean", row.clean_pred), ("adv", row.adv_pred)):
            confidence = getattr(row, f"{name}_confidence")
            true = confidence if predicted == row.label else 1 - confidence
            assert getattr(row, f"{name}_brier") == pytest.approx(2 * (1 - true) ** 2, abs=1e-6)
            probabilities = all_logits.softmax(1).amax(1)
            assert (probabilities - confidence).abs().min() < 1e-6


def test_calibration_is_that_of_clean_clips_and_of_each_threat(records, tmp_path):
    rows = robust_rows(records, tmp_path, random_model(1), threats=THREATS)
    table = calibration_of(rows, THREATS)
    assert [each.threat for each in table] == [None, "linf-1/255", "linf-8/255"]
    for entry in table:
        part = [row for row in rows if row.threat == (entry.threat or "linf-1/255")]
        side = "adv" if entry.threat else "clean"
        confidences = [getattr(row, f"{side}_confidence") for row in part]
        right = [getattr(row, f"{side}_pred") == row.label for row in part]
        assert entry.n == sum(each.count for each in entry.bins) == 4
        assert entry.accuracy == sum(right) / 4
        assert entry.confidence == pytest.approx(sum(confidences) / 4)
        assert entry.brier == pytest.approx(sum(getattr(row, f"{side}_brier") for row in part) / 4)
        assert entry.ece == expected_calibration_error(reliability(confidences, right))


def test_rows_that_are_read_back_give_the_same_calibration(records, tmp_path):
    rows = robust_rows(records, tmp_path, random_model(1), threats=THREATS)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    again = [AttackRow.from_json(json.loads(line)) for line in lines]
    assert calibration_of(again, THREATS) == calibration_of(rows, THREATS)


def test_rows_of_earlier_revisions_have_no_calibration():
    old = _row(None, None, True)
    assert calibration_of([old, _row(0.9, 0.02, True)], THREATS[:1]) == []


def test_failed_videos_have_no_prediction():
    failed = _row(None, None, False, error="a: does not decode")
    (clean, attacked) = calibration_of([_row(0.8, 0.08, True), failed], THREATS[:1])
    assert clean.n == attacked.n == 1 and clean.ece == pytest.approx(0.2)
    assert calibration_of([failed], THREATS[:1]) == []


def test_the_report_has_a_table_and_a_figure(tmp_path):
    rows = [_row(0.8, 0.08, True), _row(0.6, 0.72, False)]
    text = "\n".join(calibration_lines(tmp_path, calibration_of(rows, THREATS[:1])))
    assert "| clean | 2 | 50.0 | 70.0 | 40.0 (20.0 to 60.0) | 0.400 (" in text
    assert (tmp_path / "calibration.png").is_file()
    assert calibration_lines(tmp_path, []) == []
    assert not (tmp_path / "calibration.png").exists()


def test_confidences_are_finite_for_logits_of_minus_infinity(records, tmp_path):
    net = random_model(1)

    def model(x):
        logits = net(x)
        return torch.cat([logits, torch.full_like(logits[:, :1], -math.inf)], 1)

    rows = robust_rows(records, tmp_path, model, identity="fixed")
    assert all(0 < row.adv_confidence <= 1 and 0 <= row.adv_brier <= 2 for row in rows)


def test_intervals_are_those_of_drawn_predictions():
    """Compare with a bootstrap that computes the curve of each draw."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 60)
    right = rng.uniform(size=60) < confidence - 0.1
    drawn = []
    for _ in range(1500):
        chosen = rng.integers(60, size=60)
        drawn.append(
            expected_calibration_error(
                reliability(confidence[chosen].tolist(), right[chosen].tolist())
            )
        )
    expected = tuple(np.quantile(drawn, (0.025, 0.975)))
    found = calibration_interval(confidence.tolist(), right.tolist(), resamples=4000)
    assert found == pytest.approx(expected, abs=0.02)
    # without a spread there is none
    assert calibration_interval([0.9] * 5, [True] * 5) == pytest.approx((0.1, 0.1))
    values = rng.normal(size=40).tolist()
    expected = bootstrap_interval(lambda x: float(x.mean()), np.array(values), resamples=4000)
    assert mean_interval(values, resamples=4000) == pytest.approx(expected, abs=0.03)
