"""Config files of small studies, and runs without training."""

from dataclasses import replace
from pathlib import Path

from tests.helpers import tiny, tiny_ucf101
from vidrobust import config
from vidrobust.attacks import ThreatModel
from vidrobust.data import Failure
from vidrobust.evaluation import AttackRow, Summary, robust_curve
from vidrobust.evaluation.adversarial.curve import CurvePoint
from vidrobust.evaluation.representation.geometry import Geometry
from vidrobust.evaluation.representation.knn_and_probe import Accuracy
from vidrobust.study import Arm, FinishedRun


def study_page(folder: Path, text: str) -> Path:
    """Write study.yaml, and the base.yaml of its data set of a few clips, and return the file."""
    root = tiny_ucf101(folder / "data")
    (folder / "base.yaml").write_text(config.to_yaml(config.loads("", tiny(f"data.root={root}"))))
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"


def finished_runs(robust: dict[str, list[float]]) -> list[FinishedRun]:
    """Return runs on the data set d with three budgets: 0.8 at 0, a given accuracy, half of it.

    robust: name of an arm -> the given accuracy, by seed.
    """
    space = Geometry(
        alignment=0.5,
        uniformity=-2.0,
        tolerance=0.1,
        margin_mean=0.1,
        radius=0.5,
        fisher=1.0,
        effective_rank=3.0,
        margin_quantiles=[0.0] * 5,
        margin_histogram=[1.0] * 40,
    )
    runs = []
    for name, values in robust.items():
        for seed, value in enumerate(values):
            removal = (
                [{"fn_removed": 0.0}, {"fn_removed": 0.25, "fn_precision": value}]
                if name == "fnr"
                else []
            )
            summary = Summary(
                dataset="d",
                split="test",
                branch="clean",
                views={},
                representation={"trained_probe": Accuracy(0.9, [], 50)},
                geometry={"trained": space},
                corruption=None,
                curve=[point(0, 0.8), point(0.01, value), point(0.02, value / 2)],
                clean_acc=0.8,
                n=50,
                chance=0.1,
                suite="pgd-3x1",
                classifier="own head" if name == "sup" else "linear probe",
                failed=[],
                warnings=["a doubt"] if value == 0.4 else [],
            )
            arm = Arm("d", name, seed, config.Config(), Path())
            runs.append(FinishedRun(arm, summary, removal))
    return runs


def point(eps: float, robust: float) -> CurvePoint:
    """Return an entry of a curve with a given robust accuracy."""
    threat = ThreatModel("linf", eps)
    (entry,) = robust_curve([AttackRow.failed(Failure(0, "", 0, ""), threat)], [threat])
    return replace(entry, threat=f"linf-{eps}", robust_acc=robust)
