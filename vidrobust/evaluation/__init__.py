"""A checkpoint becomes numbers."""

from vidrobust.evaluation.bias import bias_table, check_bias, evaluate_bias
from vidrobust.evaluation.contact_sheet import contact_sheet
from vidrobust.evaluation.corruption import corruption_table, evaluate_corruptions
from vidrobust.evaluation.curve import robust_curve
from vidrobust.evaluation.evaluate import build_lists, check_evaluation, evaluate, load_method
from vidrobust.evaluation.feature_store import DiskStore, Features
from vidrobust.evaluation.features import write_features
from vidrobust.evaluation.knn import knn_scores
from vidrobust.evaluation.memory import MicroBatches
from vidrobust.evaluation.predict import evaluation_mode, extract
from vidrobust.evaluation.probe import fit_probe
from vidrobust.evaluation.report import rewrite_report
from vidrobust.evaluation.robust import evaluate_robust
from vidrobust.evaluation.statistics import wilson
from vidrobust.evaluation.suite import SUITES, Suite, check_suite

__all__ = [
    "SUITES", "DiskStore", "Features", "MicroBatches", "Suite", "bias_table", "build_lists", "check_bias",
    "check_evaluation",
    "check_suite", "contact_sheet", "corruption_table", "evaluate", "evaluate_bias", "evaluate_corruptions",
    "evaluate_robust", "evaluation_mode", "extract", "fit_probe", "knn_scores",
    "load_method", "rewrite_report", "robust_curve", "wilson", "write_features",
]  # fmt: skip
