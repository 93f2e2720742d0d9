"""Plant bugs one at a time, and see which the tests miss.

    python tools/mutate.py --output-dir FOLDER

Places are drawn at random from the attacks, corruptions, losses, decoding, samplers, rows and
probes. At each, cosmic-ray (pip install 'vidrobust[dev]') changes one token (an operator, a number,
a comparison, ...) in a copy of this clone, and the tests of the changed file's room run until one
fails: those of the same name first. What no test saw is listed with its change; a folder that has
some of the rows goes on from there.
"""

import argparse
import ast
import json
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue

REPO = Path(__file__).resolve().parents[2]

# files of the package that are changed -> folders of their tests
ROOMS = {
    "attacks/*.py": ("attacks",),
    "corruptions/*.py": ("corruptions",),
    "data/decoding/*.py": ("data",),
    "data/clip_reader.py": ("data",),
    "data/sampling.py": ("data",),
    "losses/*.py": ("losses", "methods"),
    "methods/false_negatives/*.py": ("methods",),
    "evaluation/results.py": ("evaluation",),
    "evaluation/representation/probes.py": ("evaluation",),
    "evaluation/representation/knn.py": ("evaluation",),
}
_OUTLIVES_S = 900  # of all tests of a room; a change that makes them hang is seen


Change = tuple[str, int, int, str, int]  # file, line, column, operator, which of its changes


@dataclass
class Planted:
    """A change and what became of it.

    place: file:line:column. change: the line before and after, one below the other. seen: whether a
    test failed or hung, and by: which.
    """

    place: str
    operator: str
    change: str
    seen: bool
    by: str


def candidates(root: Path) -> dict[tuple[str, tuple[int, int]], list[tuple[str, int]]]:
    """Return (file, (line, column)) -> (operator, occurrence) of every change that can be made.

    Annotations are left out, as nothing runs them.
    """
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import WorkDB, use_db

    files = [path for room in ROOMS for path in sorted((root / "vidrobust").glob(room))]
    files = [path for path in files if path.name != "__init__.py"]
    annotated = {path: list(_annotations(path)) for path in files}
    found: dict[tuple[str, tuple[int, int]], list[tuple[str, int]]] = {}
    with use_db(":memory:", WorkDB.Mode.create) as database:
        init(files, database, {})
        for item in database.work_items:
            (change,) = item.mutations
            spans = annotated[change.module_path]
            if not any(begin <= change.start_pos <= end for begin, end in spans):
                name = change.module_path.relative_to(root).as_posix()
                place = found.setdefault((name, tuple(change.start_pos)), [])
                place.append((change.operator_name, change.occurrence))
    return found


def _annotations(path: Path) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield the (line, column) at which each annotation begins and ends."""
    for node in ast.walk(ast.parse(path.read_text())):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if isinstance(part, ast.expr):
                yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)  # type: ignore[misc]


def tests_of(root: Path, name: str) -> list[str]:
    """Return the test files of a file's room, those that speak most of it first."""
    rooms = next(rooms for pattern, rooms in ROOMS.items() if Path(name).match(pattern))
    stem = Path(name).stem
    files = sorted(path for room in rooms for path in (root / "tests" / room).rglob("test_*.py"))
    files.sort(key=lambda path: (stem not in path.stem, -path.read_text().count(stem)))
    return [path.relative_to(root).as_posix() for path in files]


def command(root: Path, tests: Sequence[str]) -> str:
    """Return what runs tests in a copy of the clone, until one fails."""
    # -n 0: each copy has a core of its own
    pytest = f"{sys.executable} -m pytest -x -q -n 0 -m 'not slow' -p no:cacheprovider"
    return f"env -C {root} OMP_NUM_THREADS=1 PYTHONPATH={root} {pytest} {' '.join(tests)}"


def require_sound(root: Path, changes: Sequence[Change]) -> None:
    """Exit where the tests of a room fail by themselves: they would see every change."""
    for test in sorted({test for name, *_ in changes for test in tests_of(root, name)}):
        done = subprocess.run(shlex.split(command(root, [test])), capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{test} fails without a change:\n{done.stdout[-2000:]}")


def plant(root: Path, change: Change) -> Planted:
    """Make one change in a copy of the clone, run the tests of its room, and take it back."""
    from cosmic_ray.mutating import mutate_and_test
    from cosmic_ray.work_item import MutationSpec

    name, line, column, operator, occurrence = change
    made = MutationSpec(root / name, operator, occurrence, (line, column), (line, column + 1))
    result = mutate_and_test([made], command(root, tests_of(root, name)), _OUTLIVES_S)
    if result.worker_outcome != "normal":
        raise RuntimeError(f"{name}:{line}: {result.worker_outcome}: {result.output}")
    lines = [row for row in (result.diff or "").splitlines() if row[:1] in "+-"]
    lines = [row for row in lines if not row.startswith(("+++", "---"))]
    output = (result.output or "").splitlines()
    by = next((row for row in output if row.startswith(("FAILED", "ERROR"))), "")
    return Planted(
        f"{name}:{line}:{column}", operator, "\n".join(lines), result.is_killed, by[:200]
    )


def draw(root: Path, places: int, seed: int) -> list[Change]:
    """Return a random change at each of so many random places."""
    found = candidates(root)
    rng = random.Random(seed)
    drawn = rng.sample(sorted(found), min(places, len(found)))
    return [(name, *at, *rng.choice(sorted(found[name, at]))) for name, at in drawn]


def mutate(out: Path, places: int, seed: int, jobs: int) -> list[Planted]:
    """Plant changes, write a row of each to out/planted.jsonl, and return all rows.

    Args:
        out: a folder for copies of the clone and the rows.
        places: how many changes.
        seed: of where and which.
        jobs: copies, each with one change at a time.
    """
    copies: Queue[Path] = Queue()
    for number in range(jobs):
        copy = out / f"copy{number}"
        shutil.rmtree(copy, ignore_errors=True)  # one that was killed may still be changed
        shutil.copytree(
            REPO, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache")
        )
        copies.put(copy)
    shared = REPO.parent / "shared"  # data that some tests want beside the clone
    if shared.is_dir() and not (out / "shared").exists():
        (out / "shared").symlink_to(shared)
    rows = out / "planted.jsonl"
    done = [json.loads(line) for line in rows.read_text().splitlines()] if rows.is_file() else []
    planted = {row["place"]: Planted(**row) for row in done}

    def one(change: Change) -> None:
        name, line, column, *_ = change
        place = f"{name}:{line}:{column}"
        if place in planted:
            return
        copy = copies.get()
        try:
            planted[place] = plant(copy, change)
        finally:
            copies.put(copy)
        with rows.open("a") as file:
            file.write(json.dumps(asdict(planted[place])) + "\n")
        print(
            f"{len(planted):4d} {'seen' if planted[place].seen else 'MISSED':<7} {place}",
            flush=True,
        )

    changes = draw(REPO, places, seed)
    if not planted:
        require_sound(out / "copy0", changes)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, changes))
    return [planted[f"{name}:{line}:{column}"] for name, line, column, *_ in changes]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output-dir", type=Path, required=True, help="a folder for copies and rows"
    )
    parser.add_argument("--places", type=int, default=200, help="how many changes")
    parser.add_argument("--seed", type=int, default=0, help="of where and which")
    parser.add_argument("--jobs", type=int, default=1, help="changes at a time, a core each")
    args = parser.parse_args()
    out = args.output_dir.resolve()
    out.mkdir(parents=True, exist_ok=True)
    planted = mutate(out, args.places, args.seed, args.jobs)
    missed = [row for row in planted if not row.seen]
    print(
        f"{len(planted)} changes, {len(missed)} missed ({100 * len(missed) / len(planted):.1f} %)"
    )
    for row in missed:
        print(f"\n{row.place} ({row.operator})\n{row.change}")
