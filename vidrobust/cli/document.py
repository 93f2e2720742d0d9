"""Write the generated parts of the docs: python tools/document.py [--check]

A generated part of a Markdown file lies between `<!-- generated: NAME -->` and `<!-- end -->`. A
test compares every part with what this command would write.
"""

import argparse
import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path

from vidrobust.methods import fidelity

REPO = Path(__file__).resolve().parents[2]
_PART = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def tree() -> str:
    """Return the tree of the package, a line per file, from the first lines of docstrings."""
    lines = ["```", "vidrobust/"]
    for path in _in_order(REPO / "vidrobust"):
        depth = len(path.relative_to(REPO / "vidrobust").parts)
        package = path / "__init__.py"
        name = f"{'  ' * depth}{path.name}{'/' if path.is_dir() else ''}"
        lines.append(f"{name:<32} {_first_line(package if path.is_dir() else path)}".rstrip())
    return "\n".join([*lines, "```"]) + "\n"


def _in_order(folder: Path) -> list[Path]:
    """Return files and folders below a folder: its files first, each folder before its content."""
    paths = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir() and (path / "__init__.py").is_file():
            paths += [path, *_in_order(path)]
        elif path.suffix == ".py" and path.name != "__init__.py":
            paths.append(path)
    return paths


def _first_line(path: Path) -> str:
    line = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
    return re.sub(r":( python)? (tools|datasets)/.*", ".", line)  # how a command is called


# name of a part, or path of a whole file -> its text
PARTS: dict[str, Callable[[], str]] = {"tree": tree}
FILES: dict[str, Callable[[], str]] = {"docs/fidelity.md": fidelity.document}


def written(path: Path) -> str:
    """Return the text of a Markdown file with its generated parts as they should be."""
    name = path.relative_to(REPO).as_posix()
    if name in FILES:
        return FILES[name]()
    return _PART.sub(lambda part: part[1] + PARTS[part[2]]() + part[4], path.read_text())


def documents() -> list[Path]:
    """Return all Markdown files of the repository that are ours."""
    return [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]


def main() -> None:
    """Write every generated part that is out of date; with --check, list them and exit with 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if out of date")
    args = parser.parse_args()
    stale = [path for path in documents() if written(path) != path.read_text()]
    for path in stale:
        print(path.relative_to(REPO))
        if not args.check:
            path.write_text(written(path))
    sys.exit(args.check and bool(stale))
