"""Variables of a rank that are no numbers are refused in one line."""

import re

import pytest

from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError


@pytest.mark.parametrize(
    ("name", "value", "range_"),
    [
        ("RANK", "x", "from 0 to 1"),
        ("RANK", "2", "from 0 to 1"),
        ("WORLD_SIZE", "2.0", "from 1 to 1000000"),
        ("WORLD_SIZE", "0", "from 1 to 1000000"),
        ("MASTER_PORT", "abc", "from 1 to 65535"),
        ("MASTER_PORT", "70000", "from 1 to 65535"),
    ],
)
def test_variables_that_are_not_numbers_in_their_range_are_refused(
    monkeypatch, name, value, range_
):
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "5"}
    for variable, text in {**variables, name: value}.items():
        monkeypatch.setenv(variable, text)
    message = f"{name}={value}: must be a whole number {range_}"
    with pytest.raises(UserError, match=re.escape(message)):
        distributed.start("cpu")


def test_a_number_of_ranks_without_the_number_of_this_one_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = "WORLD_SIZE=2, but RANK, MASTER_ADDR, MASTER_PORT not set: set RANK, WORLD_SIZE"
    with pytest.raises(UserError, match=message):
        distributed.start("cpu")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distributed.start("cpu").type == "cpu"


@pytest.mark.parametrize(("name", "value"), [("MASTER_PORT", "70000"), ("RANK", "x")])
def test_a_refusal_is_reported_by_a_rank_that_has_not_met_the_others(monkeypatch, name, value):
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "5"}
    for variable, text in {**variables, name: value}.items():
        monkeypatch.setenv(variable, text)
    assert distributed.first_to_tell("refused")
