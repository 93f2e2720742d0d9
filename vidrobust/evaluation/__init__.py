"""Evaluate checkpoints."""

from vidrobust.evaluation.adversarial.curve import robust_curve
from vidrobust.evaluation.adversarial.micro_batches import MicroBatches
from vidrobust.evaluation.adversarial.rows import evaluate_robust
from vidrobust.evaluation.adversarial.suites import SUITES, Suite, check_suite
from vidrobust.evaluation.evaluate import build_lists, check_evaluation, evaluate, load_method
from vidrobust.evaluation.natural.bias import bias_table, check_bias, evaluate_bias
from vidrobust.evaluation.natural.corruption import corruption_table, evaluate_corruptions
from vidrobust.evaluation.report.contact_sheet import contact_sheet
from vidrobust.evaluation.report.markdown import rewrite_report
from vidrobust.evaluation.representation.features import write_features
from vidrobust.evaluation.representation.knn import knn_scores
from vidrobust.evaluation.representation.probes import fit_probe
from vidrobust.evaluation.settings import MeasureSettings
from vidrobust.models.feature_store import DiskStore, Features
from vidrobust.models.inference import evaluation_mode, extract
from vidrobust.utils.intervals import wilson

__all__ = [
    "SUITES",
    "DiskStore",
    "Features",
    "MeasureSettings",
    "MicroBatches",
    "Suite",
    "bias_table",
    "build_lists",
    "check_bias",
    "check_evaluation",
    "check_suite",
    "contact_sheet",
    "corruption_table",
    "evaluate",
    "evaluate_bias",
    "evaluate_corruptions",
    "evaluate_robust",
    "evaluation_mode",
    "extract",
    "fit_probe",
    "knn_scores",
    "load_method",
    "rewrite_report",
    "robust_curve",
    "wilson",
    "write_features",
]
