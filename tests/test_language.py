"""Docstrings, comments, messages, help and docs use plain technical English (CONTRIBUTING.md)."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from tests.helpers import REPO

# words of a private language -> what to write
GLOSSARY = {
    r"\b(is|are|was|were|be|been) told\b|\btells?\b": "reported, logged, warned, shows",
    r"\btrunks?\b": "backbone",
    r"\bembedded (data )?set\b": "built-in synthetic data set",
    r"\btak(es|en|ing) for false\b": "treats as false negative",
    r"\bto the last bit\b": "bitwise identical",
    r"\bnobody's\b": "unknown (-1)",
    r"\b[Pp]apers? [ABC]\b": "authors and year",
    r"\bshares? of\b": "fraction of",
    r"\bbesides\b": "also",
    r"\blacks?\b": "has no; is missing",
    r"\bclimbs?\b": "increases",
    # documents that lie outside of the repository
    r"\b(METHODS|DESIGN|FIDELITY|CHECKPOINTS|ANCHORS)\b(\.md)?": "docs/references.md, or nothing",
}
# data beside the repository, which tests use where it is present
OUTSIDE = {r"\.\./shared|/work/": "a path of the repository"}
# names in code that stay: keys of state dicts, options and public parameters
CODE = re.compile(
    r"`[^`]*`|\btrunk\\?\.|\b\w+\\?\.trunk\b(\.\w+)*|\btrunk\.|momentum_climbs|climbs=|\"trunk"
)
# docstrings begin with a verb, or name a class or a quantity
OPENING = re.compile(r"(What|Whether|Of|As|How|Where|Which|That|To what|One whose)\b")
SOURCES = sorted((REPO / "vidrobust").rglob("*.py"))
TESTS = [p for p in sorted((REPO / "tests").rglob("*.py")) if p.name != "test_language.py"]
PAGES = [
    *(REPO / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((REPO / "docs").rglob("*.md")),
    *sorted((REPO / "datasets").rglob("*.md")),
    *sorted((REPO / "configs").rglob("*.yaml")),
]


def prose_of(path: Path) -> list[tuple[int, str]]:
    """Return (line, text) of everything in a file that people read."""
    text = path.read_text()
    if path.suffix != ".py":
        return list(enumerate(text.splitlines(), 1))
    lines = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            lines.append((token.start[0], token.string))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            lines += [(node.lineno + i, line) for i, line in enumerate(node.value.splitlines())]
    return lines


# one test per kind of file: a test per file would take longer to schedule than to run
FILES = {"package": SOURCES, "tests": TESTS, "docs and config files": PAGES}


@pytest.mark.parametrize("kind", FILES)
def test_text_uses_the_words_of_the_field(kind):
    patterns = GLOSSARY if kind == "tests" else GLOSSARY | OUTSIDE
    hits = []
    for path in FILES[kind]:
        for number, line in prose_of(path):
            words = CODE.sub("", line)
            for pattern, better in patterns.items():
                if found := re.search(pattern, words):
                    place = f"{path.relative_to(REPO)}:{number}"
                    hits.append(f"{place}: {found[0]!r}; write {better}")
    assert not hits, "\n".join(hits)


def test_docstrings_begin_with_a_verb_or_a_name():
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    hits = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            docstring = ast.get_docstring(node) if isinstance(node, kinds) else None
            if docstring and OPENING.match(docstring):
                hits.append(f"{path.relative_to(REPO)}: {docstring.splitlines()[0]}")
    assert not hits, "\n".join(hits)


def test_attributes_are_assigned_one_by_one():
    hits = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            for target in node.targets if isinstance(node, ast.Assign) else []:
                parts = target.elts if isinstance(target, ast.Tuple) else []
                if len(parts) > 1 and all(isinstance(part, ast.Attribute) for part in parts):
                    hits.append(f"{path.relative_to(REPO)}:{node.lineno}")
    assert not hits, "\n".join(hits)


def test_formatting_is_left_to_the_formatter():
    skipped = [path for path in REPO.rglob("*.py") if "# fmt" + ": skip" in path.read_text()]
    assert not skipped, "allowed for tables of numbers only, at most 30 in the repository"
