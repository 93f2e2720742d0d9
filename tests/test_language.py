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
    r"\.\./shared|/work/": "a path of the repository",
}
# names in code that stay: keys of state dicts, options and public parameters
CODE = re.compile(r"`[^`]*`|\b\w+\.trunk\b(\.\w+)*|\btrunk\.|momentum_climbs|climbs=|\"trunk")
# docstrings begin with a verb, or name a class or a quantity
OPENING = re.compile(r"(What|Whether|Of|As|How|Where|Which|That|To what|One whose)\b")
SOURCES = sorted((REPO / "vidrobust").rglob("*.py"))
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


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=lambda path: str(path.relative_to(REPO)))
def test_text_uses_the_words_of_the_field(path):
    hits = []
    for number, line in prose_of(path):
        words = CODE.sub("", line)
        for pattern, better in GLOSSARY.items():
            if found := re.search(pattern, words):
                hits.append(f"{path.name}:{number}: {found[0]!r}; write {better}")
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_docstrings_begin_with_a_verb_or_a_name(path):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(ast.parse(path.read_text())):
        docstring = ast.get_docstring(node) if isinstance(node, kinds) else None
        assert not (docstring and OPENING.match(docstring)), docstring


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_attributes_are_assigned_one_by_one(path):
    for node in ast.walk(ast.parse(path.read_text())):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            several = isinstance(target, ast.Tuple) and len(target.elts) > 1
            assert not several or not all(isinstance(e, ast.Attribute) for e in target.elts), (
                f"{path.name}:{node.lineno}"
            )


def test_formatting_is_left_to_the_formatter():
    skipped = [p for p in REPO.rglob("*.py") if "# fmt" + ": skip" in p.read_text()]
    assert len(skipped) == 0, "at most 30 in the repository are allowed, for tables of numbers"
