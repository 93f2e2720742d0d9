"""The record of a process is read back, or a damaged file is named."""

import json

import pytest

from vidrobust.utils.environment import environment, read_environment
from vidrobust.utils.errors import UserError


def test_it_is_read_as_it_was_written(tmp_path):
    made = environment()
    (tmp_path / "environment.json").write_text(json.dumps(made))
    assert read_environment(tmp_path) == made


def test_an_evaluation_of_an_earlier_revision_has_none(tmp_path):
    assert read_environment(tmp_path) == {}


@pytest.mark.parametrize("content", ["", "[]", "{", "\udcff"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, content):
    (tmp_path / "environment.json").write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match="environment.json: .*delete it; reports then leave it out"):
        read_environment(tmp_path)
