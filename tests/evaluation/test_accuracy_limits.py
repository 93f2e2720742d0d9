"""Limits of accuracies: how they are written, and which accuracies are below them."""

import pytest

from vidrobust import config
from vidrobust.evaluation.accuracy_limits import (
    below,
    expected_names,
    parse_percents,
    require_names,
)
from vidrobust.utils.errors import UserError


def test_threats_are_written_as_an_evaluation_writes_them():
    limits = parse_percents(["linf-0.00392156862745098=45", " clean=80", "mpc=12.5"], "--x")
    assert limits == {"linf-1/255": 0.45, "clean": 0.8, "mpc": 0.125}


@pytest.mark.parametrize("item", ["", "45", "=45", "linf-1/255", "robust=3", "linf-9=3"])
def test_a_name_that_no_accuracy_has_is_refused(item):
    with pytest.raises(UserError, match=r"--x .*write THREAT=PERCENT, such as linf-1/255=45"):
        parse_percents([item], "--x")


@pytest.mark.parametrize("number", ["-1", "100.5", "nan", "inf", "x", "", "4 5"])
def test_a_number_that_is_no_per_cent_is_refused(number):
    with pytest.raises(UserError, match="must be 0 to 100 per cent"):
        parse_percents([f"clean={number}"], "--x")


def test_a_limit_is_given_once():
    with pytest.raises(UserError, match="clean is given twice"):
        parse_percents(["clean=1", "clean=1"], "--x")


@pytest.mark.parametrize("hits", range(101))
def test_an_accuracy_that_equals_its_limit_passes(hits):
    limits = parse_percents([f"clean={hits}"], "--x")
    assert below({"clean": hits / 100}, limits) == []


def test_an_accuracy_below_its_limit_is_named_with_both():
    lines = below({"clean": 0.8, "linf-1/255": 0.3125}, {"clean": 0.8, "linf-1/255": 0.45})
    assert lines == ["linf-1/255: 31.25 % is below 45 %"]


def test_names_that_an_evaluation_will_have():
    words = ["eval.threats=[linf-0,flicker-linf-8/255]", "eval.corruption.names=[contrast]"]
    assert expected_names(config.loads("", words)) == [
        "clean",
        "linf-0",
        "flicker-linf-8/255",
        "mpc",
    ]


def test_retrieval_attacks_no_classifier():
    cfg = config.loads("", ["protocol.name=retrieval", "eval.threats=[linf-1/255]"])
    assert expected_names(cfg) == ["clean"]


def test_a_limit_of_an_accuracy_that_will_not_be_measured_is_refused():
    with pytest.raises(UserError, match=r"--x mpc: this evaluation has no such .* it has clean;"):
        require_names({"clean": 0.5, "mpc": 0.5}, ["clean"], "--x")
