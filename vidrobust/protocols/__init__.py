"""Apply a protocol to a trained model, which it may finetune, on one split or several."""

from vidrobust.protocols.apply_protocol import Subject, report_folder, run_protocol
from vidrobust.protocols.splits import run_splits

__all__ = ["Subject", "report_folder", "run_protocol", "run_splits"]
