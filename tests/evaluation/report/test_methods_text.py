import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.evaluation.report.test_html_report import _rows, _summary
from tests.helpers import REPO
from vidrobust.attacks import ATTACKS, parse_threat
from vidrobust.corruptions import BENCHMARKS
from vidrobust.evaluation.adversarial.curve import robust_curve
from vidrobust.evaluation.adversarial.suites import SUITES
from vidrobust.evaluation.report.methods_text import Effort, bibtex, methods_text, references, used
from vidrobust.evaluation.representation.protocols import PROTOCOLS
from vidrobust.evaluation.retrieval_summary import RetrievalTable


def _documented():
    """Return key -> (title, arXiv number or "") of docs/references.md."""
    rows = {}
    for line in (REPO / "docs/references.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 4:
            number = re.match(r"\[([\d.]+)\]", cells[2])
            rows[cells[0]] = (cells[1], number[1] if number else "")
    return rows


def test_entries_agree_with_the_documented_references():
    documented = _documented()
    keys = [each.key for each in references()]
    assert len(set(keys)) == len(keys) > 40
    for each in references():
        title, number = documented[each.cites]
        assert f"title = {{{{{title}}}}}" in each.text
        assert not number or f"eprint = {{{number}}}" in each.text
        assert each.text.count("{") == each.text.count("}") and "uses =" not in each.text


@pytest.mark.parametrize(
    ("checks", "doubts", "said"),
    [
        (None, 0, None),
        (0, 0, "Model and attack were not checked before."),
        (8, 0, "on 8 clips \\cite{athalye2018obfuscated} gave no warning."),
        (8, 2, "on 8 clips \\cite{athalye2018obfuscated} gave 2 warnings."),
    ],
)
def test_the_text_says_of_self_checks_what_was_done(checks, doubts, said):
    points = robust_curve(_rows(["a", "b"], 9), [parse_threat("linf-1/255")])
    summary = _summary(
        ["a", "b"], 9, curve=points, attacks=["pgd"], suite="pgd-20x1", checks=checks
    )
    # warnings of other parts do not count
    summary.warnings.append("the probe is not above random")
    text = " ".join(methods_text(summary, Effort(doubts, 12.3)))
    assert "in all, 12 s." in text
    assert (said in text) if said else ("checked" not in text and "Checks" not in text)
    assert ("athalye" in bibtex(used(summary))) == bool(checks)


def test_latex_reads_the_text_as_it_is_meant():
    text = " ".join(methods_text(_summary(["a"], 9, dataset="ucf101_mini & 50 %")))
    assert r"ucf101\_mini \& 50 \%" in text and "95\\% Wilson" in text
    without = re.sub(r"\\cite\{[^}]*\}|\\[%&_#${}]", "", text)
    assert not re.search(r"[%&_#$^~{}\\]", without)


def test_everything_that_an_evaluation_names_has_a_reference():
    sourced = frozenset().union(*(each.uses for each in references()))
    own_sets = {"quick", "all"}
    named = {f"attack:{name}" for name in ATTACKS}
    named |= {f"suite:{name}" for name, kind in SUITES.items() if name != kind}
    named |= {f"corruptions:{name}" for name in BENCHMARKS if name not in own_sets}
    named |= {f"protocol:{name}" for name in PROTOCOLS}
    assert not named - sourced


def test_the_bibtex_is_of_what_was_used_and_of_nothing_else():
    summary = _summary(["a", "b"], 9, protocol="knn")
    keys = set(re.findall(r"@\w+\{(\w+),", bibtex(used(summary))))
    assert keys == {"wilson1927probable", "wu2018unsupervised"}
    text = " ".join(methods_text(summary))
    assert _cited(text) == keys and "attack" not in text


def _cited(text):
    return {key for group in re.findall(r"\\cite\{([^}]*)\}", text) for key in group.split(",")}


def test_all_that_the_bibtex_has_is_cited_where_it_was_used():
    retrieval = RetrievalTable(
        n=9, gallery=20, clips=3, chance=0.2, recall={}, similarity="centered"
    )
    corruption = SimpleNamespace(
        n=9, severities=[1], place="model", corruptions={"fog": 0}, mce=90.0, baseline="a_net"
    )
    points = robust_curve(_rows(["a", "b"], 9), [parse_threat("linf-1/255")])
    summary = _summary(
        ["a", "b"],
        9,
        curve=[replace(points[0], norm="l1")],
        attacks=["pgd"],
        suite="pgd-20x1",
        threats=["l1-1"],
        checks=8,
        eot=4,
        precise_bn=100,
        geometry={"trained": None},
        sensitivity=SimpleNamespace(n=9),
        retrieval=retrieval,
        corruption=corruption,
        calibration=[SimpleNamespace(bins=[0] * 15)],
        open_set=SimpleNamespace(),
        bias=SimpleNamespace(n=9, views={"clean": 0, "swapped": 0}),
    )
    keys = set(re.findall(r"@\w+\{(\w+),", bibtex(used(summary))))
    text = " ".join(methods_text(summary))
    assert len(keys) > 14 and _cited(text) == keys
    assert r"relative to a\_net \cite{hendrycks" in text and "computed anew from 100" in text


@pytest.mark.parametrize(
    ("attacks", "suite", "expected"),
    [
        (["pgd"], "pgd-20x1", {"madry"}),
        (["apgd-ce", "apgd-t", "fab-t", "square"], "autoattack", {"croce", "andriushchenko"}),
    ],
)
def test_an_attacked_evaluation_cites_its_attacks(attacks, suite, expected):
    points = robust_curve(_rows(["a", "b"], 9), [parse_threat("linf-1/255")])
    summary = _summary(
        ["a", "b"], 9, curve=points, attacks=attacks, suite=suite, threats=["linf-1/255"]
    )
    keys = set(re.findall(r"@\w+\{(\w+),", bibtex(used(summary))))
    families = {re.match("[a-z]+", key)[0] for key in keys}
    assert families >= expected and ("madry" in families) == ("pgd" in attacks)
    text = " ".join(methods_text(summary))
    assert suite in text and "linf-1/255" in text
    # the text cites nothing that the BibTeX does not have
    assert _cited(text) <= keys
