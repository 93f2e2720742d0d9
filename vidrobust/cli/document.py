"""Write the generated parts of the docs.

    python tools/document.py [--check] [--study NAME]

A generated part of a Markdown file lies between `<!-- generated: NAME -->` and `<!-- end -->`. A
test compares every part with what this command would write.

NAME is an entry of `PARTS` below, or a JSON file under docs/ and one of its tables:
`<!-- generated: results/attacks_cifar10 threats -->` writes the table `threats` of
docs/results/attacks_cifar10.json. `Table` describes the fields of such a table.
"""

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from vidrobust import config
from vidrobust.cli.study_results import read_verdicts, verdict_rows, write_results
from vidrobust.config.find import protocol_file
from vidrobust.data import FORMATS, find_format
from vidrobust.evaluation.representation.protocols import PROTOCOLS
from vidrobust.methods import ADVERSARIES, METHODS, fidelity
from vidrobust.methods.spec import Cost
from vidrobust.models.checkpoints import LAYOUTS
from vidrobust.models.checkpoints.recognise import PLAIN
from vidrobust.models.sources import SOURCES
from vidrobust.study.arm_table import spread_of
from vidrobust.study.verdicts import verdict_table

REPO = Path(__file__).resolve().parents[2]
_PART = re.compile(r"(<!-- generated: ([\w/ ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_FIELD = re.compile(r"\{[^}]*\}")  # a replacement field of a format string


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


def formats() -> str:
    """Return the table of the formats of data sets."""
    lines = ["| `data.name` | what it reads under `data.root` |", "|---|---|"]
    for name in [*FORMATS, "torchvision:NAME"]:
        lines.append(f"| `{name}` | {find_format(name).help} |")
    return "\n".join(lines) + "\n"


def sources() -> str:
    """Return the table of packages whose models are taken."""
    lines = ["| source | name | needs |", "|---|---|---|"]
    for name, source in SOURCES.items():
        extra = f"`pip install 'vidrobust[{source.extra}]'`" if source.extra else ""
        lines.append(f"| `{name}:` | {source.help} | {extra} |")
    return "\n".join(lines) + "\n"


def protocols() -> str:
    """Return the table of protocols."""
    lines = ["| `protocol.name` | what | trains | source |", "|---|---|---|---|"]
    for name, spec in PROTOCOLS.items():
        trains = "yes" if spec.trains else ""
        lines.append(f"| `{name}` | {spec.help} | {trains} | {spec.source} |")
    return "\n".join(lines) + "\n"


def protocol_values() -> str:
    """Return the table of what the files of protocols set, and the command line may change."""
    lines = [
        "| `protocol.name` | epochs, batch, rate | trained under | attacked by | clips |",
        "|---|---|---|---|---|",
    ]
    for name in PROTOCOLS:
        file = protocol_file(name)
        if file is None:
            continue
        cfg = config.loads("", config_file=file)
        given = config.keys_given([], file)
        adversary = cfg.method.adversary
        learns = f"{cfg.train.epochs}, {cfg.train.batch_size}, {cfg.optim.lr:g}"
        under = ""
        if adversary.name != "none":
            under = f"`{adversary.name}`, {_code(adversary.threats)}"
        suite = f"`{cfg.eval.suite}`" if "eval.suite" in given else ""
        threats = _code(cfg.eval.threats) if "eval.threats" in given else ""
        if "eval.threats" in given and not threats:
            threats = "nothing"
        cells = [
            f"`{name}`",
            learns if PROTOCOLS[name].trains else "",
            under if PROTOCOLS[name].trains else "",
            ", ".join(each for each in (suite, threats) if each),
            str(cfg.eval.clips) if "eval.clips" in given else "",
        ]
        if any(cells[1:]):
            lines.append(_row(cells))
    return "\n".join(lines) + "\n"


def layouts() -> str:
    """Return the table of layouts of files that are recognised."""
    lines = ["| layout | read in |", "|---|---|"]
    lines += [f"| {layout.name} | {layout.origin} |" for layout in (*LAYOUTS, PLAIN)]
    return "\n".join(lines) + "\n"


def method_costs() -> str:
    """Return the table of passes per step of every method and adversary."""
    lines = [
        "| `method.name` | `method.adversary.name` | method | forward + backward | relative |",
        "|---|---|---|---|---|",
    ]
    for name, method in METHODS.items():
        lines.append(_cost_row(name, "none", method.help, method.cost, 0))
        for adversary in method.adversaries:
            spec = ADVERSARIES[adversary]
            lines.append(_cost_row(name, adversary, spec.help, spec.cost(name), spec.steps))
            for words, cost in spec.variants.items() if name == "simclr" else ():
                lines.append(_cost_row(name, adversary, words, cost, spec.steps))
    return "\n".join(lines) + "\n"


def _units(cost: Cost, steps: int) -> int:
    """Return the operations of a training step, in forward passes of one clip per video.

    A backward pass costs two forward ones, or one if it goes to the input alone.
    """
    forward, backward, to_input = cost.passes(steps)
    return forward + 2 * (backward - to_input) + to_input


def _cost_row(method: str, adversary: str, text: str, cost: Cost, steps: int) -> str:
    """Return the row of a method with an adversary in the table of costs.

    Args:
        method: method.name.
        adversary: method.adversary.name.
        text: what they are.
        cost: passes of a step.
        steps: steps of the attack.
    """
    forward, backward, to_input = cost.passes(steps)
    # A step of SimCLR, with two forward and two backward passes, costs 6; the table is relative.
    relative = _units(cost, steps) / 6
    part = f", {to_input} of them to the input" if to_input else ""
    return (
        f"| `{method}` | `{adversary}` | {text} | {forward} + {backward}{part} | {relative:.1f} |"
    )


# s per step of 64 videos of ucf101_csl on one H200 (docs/benchmarks.md), a step of 6 units
_UNIT_H = 0.448 / 6 / 3600
_DATA_SETS = {"UCF101": ("ucf101_csl", 9537), "HMDB51": ("hmdb51_csl", 3570)}
_DATA_SETS |= {"Kinetics-400": ("kinetics400_csl", 240_000)}


def study_costs() -> str:
    """Return the table of GPU hours of a training by method, for the data sets of the config files.

    A unit is the forward pass of one clip of each video of a batch.
    """
    heads = ["`method.name`", "`method.adversary.name`", "units"]
    pages = {
        title: (config.load(REPO / f"configs/{file}.yaml"), videos)
        for title, (file, videos) in _DATA_SETS.items()
    }
    heads += [f"{title}, {cfg.train.epochs} epochs, h" for title, (cfg, _) in pages.items()]
    lines = [_row(heads), "|" + "---|" * len(heads)]
    for name, method in METHODS.items():
        pairs = [("none", _units(method.cost, 0))]
        if name in ("simclr", "supervised"):
            for adversary in method.adversaries:
                spec = ADVERSARIES[adversary]
                pairs.append((adversary, _units(spec.cost(name), spec.steps)))
        for adversary, units in pairs:
            cells = [f"`{name}`", f"`{adversary}`", str(units)]
            for cfg, videos in pages.values():
                steps = cfg.train.epochs * (videos // cfg.train.batch_size)
                hours = steps * units * _UNIT_H
                cells.append(f"{hours:.0f}" if hours >= 10 else f"{hours:.2g}")
            lines.append(_row(cells))
    return "\n".join(lines) + "\n"


def method_options() -> str:
    """Return the table of options that each method and adversary uses."""
    lines = ["| `method.name` | uses of `method.*` | adversaries |", "|---|---|---|"]
    for name, method in METHODS.items():
        groups = [key for key in ("false_negatives", "negatives") if key not in method.refuses]
        options = _code([*sorted(method.options), *(f"{key}.*" for key in groups)])
        lines.append(f"| `{name}` | {options} | {_code(method.adversaries) or 'none'} |")
    lines += ["", "| `method.adversary.name` | uses of `method.adversary.*` |", "|---|---|"]
    for name, adversary in ADVERSARIES.items():
        lines.append(f"| `{name}` | {_code(sorted(adversary.options | adversary.attack))} |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Table:
    """A table of results, as a JSON file under docs/ holds it.

    Attributes:
        columns: headings.
        rows: one list of cells per row. A cell is a text, a number, a list of numbers (such as a
            mean and half of its interval), an object of names and numbers, or null.
        format: format string of the cells that hold numbers, one field for each of them.
        formats: column -> format string, where it differs from `format`.
        bold: first cell of a row -> columns whose cell in this row is bold.
        missing: text of null and of an empty object.
    """

    columns: list[str]
    rows: list[list[Any]]
    format: str = "{}"
    formats: dict[str, str] = field(default_factory=dict)
    bold: dict[str, list[str]] = field(default_factory=dict)
    missing: str = ""

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [_row(self.columns), "|" + "---|" * len(self.columns)]
        for cells in self.rows:
            texts = [
                self._cell(column, cell) for column, cell in zip(self.columns, cells, strict=True)
            ]
            for column in self.bold.get(texts[0], []):
                index = self.columns.index(column)
                texts[index] = f"**{texts[index]}**"
            lines.append(_row(texts))
        return "\n".join(lines) + "\n"

    def _cell(self, column: str, cell: Any) -> str:
        if isinstance(cell, str):
            return cell
        if cell is None or cell == {}:
            return self.missing
        if isinstance(cell, dict):
            return ", ".join(f"{name} {number}" for name, number in cell.items())
        numbers = cell if isinstance(cell, list) else [cell]
        template = self.formats.get(column, self.format)
        # a value without its interval or range is written by the first field alone
        if len(numbers) == 1:
            template = _FIELD.findall(template)[0]
        elif len(_FIELD.findall(template)) != len(numbers):
            raise ValueError(f"{column}: {template!r} does not fit {numbers}")
        return template.format(*numbers)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(file: str, name: str) -> str:
    """Return one table of a JSON file under docs/, such as ("results/demo", "runs")."""
    tables = json.loads((REPO / f"docs/{file}.json").read_text())
    return Table(**tables[name]).markdown()


def methods() -> str:
    """Return the table of methods, papers and config files."""
    lines = ["| method | paper | config file |", "|---|---|---|"]
    for entry in fidelity.ENTRIES:
        lines.append(f"| {entry.method} | {entry.paper} | {_code(entry.config.split(', '))} |")
    return "\n".join(lines) + "\n"


def released_methods() -> str:
    """Return the table of methods before and after they were changed to match their released code.

    A difference is the mean over seeds; for several seeds, with a 95 % interval by Student's t.
    """
    runs = json.loads((REPO / "docs/results/released_methods.json").read_text())
    keys = {"clean": "clean", "pgd": "PGD-20", "aa": "AutoAttack"}
    heads = [f"{title}: before, after, difference" for title in keys.values()]
    lines = ["| method | seeds | " + " | ".join(heads) + " |", "|---|---|---|---|---|"]
    for method, trees in runs.items():
        seeds = sorted(trees["before"].keys() & trees["after"].keys())
        cells = []
        for key in keys:
            before = [100 * trees["before"][seed][key] for seed in seeds]
            after = [100 * trees["after"][seed][key] for seed in seeds]
            gains = [new - old for old, new in zip(before, after, strict=True)]
            cells.append(f"{fmean(before):.1f}, {fmean(after):.1f}, {_interval(gains)}")
        lines.append(f"| {method} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def verdicts() -> str:
    """Return the claims of papers, and what the studies of docs/results/ say about them."""
    columns = "claim, source, prediction, measured, n, seeds, verdict, command and figures"
    rows: list[list[str]] = []
    for path in sorted(REPO.glob("docs/results/*.json")):
        rows += verdict_rows(json.loads(path.read_text()), path.stem)
    return Table(columns.split(", "), rows).markdown()


def claims(page: str) -> str:
    """Return the verdicts of one study, with effect sizes and p-values."""
    content = json.loads((REPO / f"docs/{page}.json").read_text())
    return "\n".join(verdict_table(read_verdicts(content)))


def _interval(values: list[float]) -> str:
    spread = spread_of(values)
    half = "" if spread.half is None else f" ± {spread.half:.1f}"
    return f"{spread.mean:+.1f}{half}"


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


# name of a part, or path of a whole file -> its text
PARTS: dict[str, Callable[[], str]] = {
    "tree": tree,
    "formats": formats,
    "layouts": layouts,
    "method_costs": method_costs,
    "methods": methods,
    "method_options": method_options,
    "protocols": protocols,
    "protocol_values": protocol_values,
    "released_methods": released_methods,
    "sources": sources,
    "study_costs": study_costs,
    "verdicts": verdicts,
}
FILES: dict[str, Callable[[], str]] = {"docs/fidelity.md": fidelity.document}


def written(path: Path) -> str:
    """Return the text of a Markdown file with its generated parts as they should be."""
    name = path.relative_to(REPO).as_posix()
    if name in FILES:
        return FILES[name]()
    return _PART.sub(lambda part: part[1] + _generated(part[2]) + part[4], path.read_text())


def _generated(name: str) -> str:
    if name in PARTS:
        return PARTS[name]()
    file, table_name = name.split(maxsplit=1)
    if table_name == "verdicts":
        return claims(file)
    return table(file, table_name)


def documents() -> list[Path]:
    """Return the Markdown files that may have generated parts."""
    return [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]


def main() -> None:
    """Write every generated part that is out of date; with --check, list them and exit with 1."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; status 1 if out of date"
    )
    parser.add_argument(
        "--study",
        action="append",
        default=[],
        metavar="NAME",
        help="first write docs/results/NAME.json from docs/results/records/NAME.jsonl and"
        " configs/study/NAME.yaml",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options with which these studies ran"
    )
    args = parser.parse_args()
    for name in args.study:
        write_results(REPO, name, args.overrides)
    stale = [path for path in documents() if written(path) != path.read_text()]
    for path in stale:
        print(path.relative_to(REPO))
        if not args.check:
            path.write_text(written(path))
    sys.exit(args.check and bool(stale))
