"""Evaluate checkpoints."""

from vidrobust.evaluation.adversarial.attack_row import AttackRow
from vidrobust.evaluation.adversarial.attack_settings import AttackSettings, check_suite
from vidrobust.evaluation.adversarial.curve import CurvePoint, robust_curve
from vidrobust.evaluation.adversarial.micro_batches import MicroBatches
from vidrobust.evaluation.adversarial.rows import evaluate_robust
from vidrobust.evaluation.adversarial.suites import SUITES, Suite
from vidrobust.evaluation.evaluate import check_evaluation, evaluate, evaluate_source
from vidrobust.evaluation.loading import build_lists, load_method
from vidrobust.evaluation.natural.bias import check_bias, evaluate_bias
from vidrobust.evaluation.natural.bias_summary import bias_table
from vidrobust.evaluation.natural.corruption import evaluate_corruptions
from vidrobust.evaluation.natural.corruption_summary import corruption_table
from vidrobust.evaluation.report.baseline import check_baseline, require_baseline
from vidrobust.evaluation.report.contact_sheet import contact_sheet
from vidrobust.evaluation.report.markdown import rewrite_report
from vidrobust.evaluation.representation.features import (
    FeatureSettings,
    checkpoint_source,
    extract_files,
    model_source,
    write_features,
    write_source_features,
)
from vidrobust.evaluation.representation.knn import knn_scores
from vidrobust.evaluation.representation.multi_label import (
    fit_multi_label_probe,
    mean_average_precision,
    measure_multi_label,
)
from vidrobust.evaluation.representation.probes import fit_probe
from vidrobust.evaluation.settings import MeasureSettings
from vidrobust.evaluation.summary import Summary, read_summary
from vidrobust.models.feature_store import DiskStore, Features
from vidrobust.models.inference import evaluation_mode, extract
from vidrobust.utils.intervals import wilson

__all__ = [
    "SUITES",
    "AttackRow",
    "AttackSettings",
    "CurvePoint",
    "DiskStore",
    "FeatureSettings",
    "Features",
    "MeasureSettings",
    "MicroBatches",
    "Suite",
    "Summary",
    "bias_table",
    "build_lists",
    "check_baseline",
    "check_bias",
    "check_evaluation",
    "check_suite",
    "checkpoint_source",
    "contact_sheet",
    "corruption_table",
    "evaluate",
    "evaluate_bias",
    "evaluate_corruptions",
    "evaluate_robust",
    "evaluate_source",
    "evaluation_mode",
    "extract",
    "extract_files",
    "fit_multi_label_probe",
    "fit_probe",
    "knn_scores",
    "load_method",
    "mean_average_precision",
    "measure_multi_label",
    "model_source",
    "read_summary",
    "require_baseline",
    "rewrite_report",
    "robust_curve",
    "wilson",
    "write_features",
    "write_source_features",
]
