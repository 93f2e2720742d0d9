"""Many runs that differ in one thing: arms x data sets x seeds, and what they say together."""

from vidrobust.study.plan import Arm, Study, plan, read_study
from vidrobust.study.report import report_name, write_study
from vidrobust.study.run import finished, require_same, run_arm
from vidrobust.study.summary import summarise

__all__ = [
    "Arm", "Study", "finished", "plan", "read_study", "report_name", "require_same", "run_arm", "summarise",
    "write_study",
]  # fmt: skip
