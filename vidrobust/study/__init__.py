"""Studies: arms x data sets x seeds, trained, evaluated and compared."""

from vidrobust.study.arm_table import ArmResult, FinishedRun, Spread, summarise
from vidrobust.study.plan import Arm, Study, plan, read_study
from vidrobust.study.report import report_name, write_study
from vidrobust.study.run import finished, require_same, run_arm

__all__ = [
    "Arm",
    "ArmResult",
    "FinishedRun",
    "Spread",
    "Study",
    "finished",
    "plan",
    "read_study",
    "report_name",
    "require_same",
    "run_arm",
    "summarise",
    "write_study",
]
