"""docs/fidelity.md is what the package says of itself, and names tests that there are."""

import re

from tests.helpers import REPO
from vidrobust.methods.fidelity import ENTRIES, document


def test_the_document_is_up_to_date():
    assert (REPO / "docs/fidelity.md").read_text() == document()


def test_pages_and_tests_that_it_names_are_there():
    tests = "\n".join(path.read_text() for path in (REPO / "tests").rglob("test_*.py"))
    known = set(re.findall(r"^def (test_\w+)", tests, re.M))
    pages = {path.stem for path in (REPO / "configs").glob("*.yaml")}
    pages |= {f"protocols/{path.stem}" for path in (REPO / "configs/protocols").glob("*.yaml")}
    for entry in ENTRIES:
        assert set(entry.tests) <= known, entry.method
        assert all(page in pages for page in entry.config.split(", ") if "=" not in page), (
            entry.method
        )
