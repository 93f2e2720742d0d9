"""The studies of configs/study/: what they compare is matched, and their claims can be tested."""

from dataclasses import fields
from pathlib import Path

import pytest

from tests.helpers import REPO
from vidrobust.attacks import parse_threat
from vidrobust.evaluation.representation.geometry import Geometry
from vidrobust.study import plan, read_study

PAGES = sorted(REPO.glob("configs/study/*.yaml"))
_GEOMETRY = {field.name for field in fields(Geometry)}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_arms_are_matched_and_the_page_states_its_command(path):
    study = read_study(path)
    runs = plan(study, Path("out"))
    head = path.read_text().split("\nseeds")[0]
    assert f"python tools/study.py --cfg configs/study/{path.name}" in head
    assert len(study.seeds) >= 3 and study.claims
    for dataset in study.datasets:
        here = [run for run in runs if run.dataset == dataset]
        # arms with more passes at equal steps have as many epochs more
        equal = [run for run in here if not run.name.endswith("_passes")]
        assert len({run.cfg.train.epochs for run in equal}) == 1
        assert len({(r.cfg.train.batch_size, str(r.cfg.data.classes)) for r in here}) == 1
        assert len({(r.cfg.model.backbone, r.cfg.model.width, r.cfg.model.stem) for r in here}) == 1
        # arms that are about augmentation, or whose method prescribes one
        others = ("_weak", "_static", "deacl", "deacl_fnr", "dynacl", "dynacl_fnr")
        assert len({str(r.cfg.augment) for r in here if not r.name.endswith(others)}) == 1


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_claims_are_about_what_is_measured(path):
    study = read_study(path)
    runs = plan(study, Path("out"))
    for claim in study.claims:
        places = claim.datasets or claim.dial or study.datasets
        arms = [name for name in (claim.arm, claim.against) if name]
        measured = {(r.dataset, r.name): r.cfg.eval for r in runs if r.name in arms}
        # no data set skips an arm of its claims
        evaluations = [measured[place, arm] for place in places for arm in arms]
        for measure in [*claim.measures, *([claim.beyond] if claim.beyond else [])]:
            kind, _, threat = measure.partition(" ")
            for options in evaluations if not claim.evaluation else ():
                if kind in ("robust", "kept"):
                    assert threat in options.threats and parse_threat(threat).eps > 0
                elif kind in ("mpc", "rpc"):
                    assert options.corruption.names
                elif kind == "gain":
                    assert threat in ("probe", "knn")
                elif kind == "shift":
                    assert options.shift.name
                elif kind in ("acc", "bias"):
                    assert threat in options.bias
                else:
                    assert kind in {"probe", "clean", *_GEOMETRY}


def test_the_numbers_of_a_dial_are_what_they_are_called():
    """The fraction of negatives of the same class is one by the number of classes."""
    study = read_study(REPO / "configs/study/cifar10_classes.yaml")
    counts = {"ten": 10, "five": 5, "two": 2}
    for claim in study.claims:
        assert claim.dial == {name: 1 / count for name, count in counts.items()}
    for run in plan(study, Path("out")):
        per_class = int(run.cfg.data.labels.split()[0])
        classes = len(run.cfg.data.classes) or 10
        assert classes == counts[run.dataset] and per_class * classes == 10_000
