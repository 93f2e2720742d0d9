"""The layout: imports go one way, files have names of their own, tools are thin."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers import REPO
from vidrobust.cli.document import documents, written

# From the bottom up: a room imports those of lower rows alone, or of its own row's column.
LAYERS = [
    {"utils"},
    {"attacks", "corruptions", "views", "losses"},
    {"config"},
    {"data"},
    {"models"},
    {"checkpoint"},
    {"methods"},
    {"training", "evaluation"},
    {"study", "benchmarks"},
    {"protocols"},
    {"cli", "api"},
]
ALONE = {"attacks", "corruptions"}  # usable without the rest of the package
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def _files():
    return sorted((REPO / "vidrobust").rglob("*.py"))


def _room(path):
    parts = path.relative_to(REPO / "vidrobust").with_suffix("").parts
    return parts[0]


def _imported(path):
    """Yield (line, room) of each import of the package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vidrobust":
            names = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            yield from ((node.lineno, name) for name in names if name in LEVEL)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("vidrobust."):
                    yield node.lineno, alias.name.split(".")[1]


def test_every_room_has_a_level():
    rooms = {_room(path) for path in _files()} - {"__init__"}
    assert rooms == set(LEVEL)


@pytest.mark.parametrize("room", sorted(LEVEL))
def test_imports_go_down(room):
    wrong = [
        f"{path.relative_to(REPO)}:{line} imports {other}"
        for path in _files()
        if _room(path) == room
        for line, other in _imported(path)
        if other != room and (LEVEL[other] >= LEVEL[room] or room in ALONE)
    ]
    assert not wrong


def test_file_names_are_unique():
    """A name says which file is meant, in a traceback and in a search."""
    names = Counter(path.name for path in _files())
    twice = {name for name, count in names.items() if count > 1}
    assert twice <= {"__init__.py", "build.py"}


def test_packages_only_export():
    """Nobody looks for definitions in an __init__.py."""
    for path in (REPO / "vidrobust").rglob("__init__.py"):
        if path.parent.name == "vidrobust":
            continue
        for node in ast.parse(path.read_text()).body:
            kinds = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign)
            assert isinstance(node, kinds), f"{path.relative_to(REPO)}:{node.lineno}"
            assigned = [target.id for target in getattr(node, "targets", [])]
            assert assigned in ([], ["__all__"]), f"{path.relative_to(REPO)}:{node.lineno}"


@pytest.mark.parametrize("path", [*(REPO / "tools").glob("*.py"), REPO / "datasets/prepare.py"])
def test_tools_are_shims(path: Path):
    assert len(path.read_text().splitlines()) <= 10
    assert (REPO / "vidrobust/cli" / path.name).is_file()


def test_reading_a_configuration_imports_no_torch():
    """Torch takes seconds to import."""
    code = (
        "import sys; from vidrobust import config; config.read('configs/ucf101_csl_adv.yaml', "
        "['data.frames=8']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False).returncode == 0


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_generated_parts_of_the_docs_are_up_to_date(path):
    """python tools/document.py"""
    assert path.read_text() == written(path)


def test_every_module_has_a_first_line_that_fits_the_tree():
    for path in _files():
        line = ast.get_docstring(ast.parse(path.read_text())).split("\n")[0]
        assert len(line) <= 110, f"{path.relative_to(REPO)}: {line}"
