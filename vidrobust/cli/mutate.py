"""Insert bugs one at a time, and list those that no test detects (mutation testing).

    python tools/mutate.py --output-dir FOLDER

Locations are chosen at random in the attacks, corruptions, losses, decoding, samplers, result rows
and probes. At each of them cosmic-ray (pip install 'vidrobust[dev]') changes one token, such as an
operator, a number or a comparison, in a copy of this clone. Then the tests of the changed file's
room run until one fails, those with the file's name first. Changes that no test detects are listed
at the end. A folder with results of an earlier call is continued.
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

# patterns of the files to change -> folders of their tests
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
_TIMEOUT_S = 900  # for the tests of a room; a change that makes them hang counts as detected


# file, line, column, operator of cosmic-ray, index among the operator's changes at this location
Change = tuple[str, int, int, str, int]


@dataclass
class Planted:
    """A change and its outcome.

    Attributes:
        place: location as file:line:column.
        operator: operator of cosmic-ray.
        change: the line before and after the change.
        seen: whether a test failed or hung.
        by: the first test that failed.
    """

    place: str
    operator: str
    change: str
    seen: bool
    by: str


def candidates(root: Path) -> dict[tuple[str, tuple[int, int]], list[tuple[str, int]]]:
    """Return the possible changes in the files of ROOMS.

    Annotations are left out, because they are never executed.

    Returns:
        (file, (line, column)) -> [(operator, index of the change), ...].
    """
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import WorkDB, use_db

    files: list[Path] = []
    for pattern in ROOMS:
        paths = sorted((root / "vidrobust").glob(pattern))
        files += [path for path in paths if path.name != "__init__.py"]
    annotated = {path: list(_annotations(path)) for path in files}
    possible: dict[tuple[str, tuple[int, int]], list[tuple[str, int]]] = {}
    with use_db(":memory:", WorkDB.Mode.create) as database:
        init(files, database, {})
        for item in database.work_items:
            (change,) = item.mutations
            spans = annotated[change.module_path]
            if not any(begin <= change.start_pos <= end for begin, end in spans):
                name = change.module_path.relative_to(root).as_posix()
                changes = possible.setdefault((name, tuple(change.start_pos)), [])
                changes.append((change.operator_name, change.occurrence))
    return possible


def _annotations(path: Path) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield the start and the end (line, column) of each annotation."""
    for node in ast.walk(ast.parse(path.read_text())):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if isinstance(part, ast.expr):
                yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)  # type: ignore[misc]


def tests_of(root: Path, name: str) -> list[str]:
    """Return the test files of a file's room, those that mention it most first."""
    rooms = next(rooms for pattern, rooms in ROOMS.items() if Path(name).match(pattern))
    stem = Path(name).stem
    files: list[Path] = []
    for room in rooms:
        files += (root / "tests" / room).rglob("test_*.py")
    files.sort()
    # a stable sort: files with the name of the changed file, then by how often they mention it
    files.sort(key=lambda path: (stem not in path.stem, -path.read_text().count(stem)))
    return [path.relative_to(root).as_posix() for path in files]


def command(root: Path, tests: Sequence[str]) -> str:
    """Return the command that runs tests in a copy of the clone until one fails."""
    # -n 0: one process per copy, because copies are tested in parallel
    pytest = f"{sys.executable} -m pytest -x -q -n 0 -m 'not slow' -p no:cacheprovider"
    return f"env -C {root} OMP_NUM_THREADS=1 PYTHONPATH={root} {pytest} {' '.join(tests)}"


def require_sound(root: Path, changes: Sequence[Change]) -> None:
    """Exit if a test fails without any change: it would detect every change."""
    tests: set[str] = set()
    for name, *_ in changes:
        tests.update(tests_of(root, name))
    for test in sorted(tests):
        done = subprocess.run(shlex.split(command(root, [test])), capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{test} fails without a change:\n{done.stdout[-2000:]}")


def plant(root: Path, change: Change) -> Planted:
    """Make one change in a copy of the clone, run the tests of its room, and undo the change."""
    from cosmic_ray.mutating import mutate_and_test
    from cosmic_ray.work_item import MutationSpec

    name, line, column, operator, occurrence = change
    mutation = MutationSpec(root / name, operator, occurrence, (line, column), (line, column + 1))
    result = mutate_and_test([mutation], command(root, tests_of(root, name)), _TIMEOUT_S)
    if result.worker_outcome != "normal":
        raise RuntimeError(f"{name}:{line}: {result.worker_outcome}: {result.output}")
    # the changed lines of the diff, without the names of the files
    lines = [row for row in (result.diff or "").splitlines() if row[:1] in "+-"]
    lines = [row for row in lines if not row.startswith(("+++", "---"))]
    output = (result.output or "").splitlines()
    by = next((row for row in output if row.startswith(("FAILED", "ERROR"))), "")
    return Planted(
        f"{name}:{line}:{column}", operator, "\n".join(lines), result.is_killed, by[:200]
    )


def draw(root: Path, places: int, seed: int) -> list[Change]:
    """Choose random changes.

    Args:
        root: the clone.
        places: number of locations, with one change each.
        seed: random seed.
    """
    possible = candidates(root)
    rng = random.Random(seed)
    locations = rng.sample(sorted(possible), min(places, len(possible)))
    return [
        (name, *position, *rng.choice(sorted(possible[name, position])))
        for name, position in locations
    ]


def mutate(out: Path, places: int, seed: int, jobs: int) -> list[Planted]:
    """Make changes, append a row for each to out/planted.jsonl, and return all rows.

    Args:
        out: folder for copies of the clone and for the rows.
        places: number of changes.
        seed: random seed of locations and changes.
        jobs: number of copies, which are tested in parallel with one change each.
    """
    copies: Queue[Path] = Queue()
    for number in range(jobs):
        copy = out / f"copy{number}"
        # a copy of a killed call may still hold a change
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(
            REPO, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache")
        )
        copies.put(copy)
    shared = REPO.parent / "shared"  # data that some tests look for next to the clone
    if shared.is_dir() and not (out / "shared").exists():
        (out / "shared").symlink_to(shared)
    rows = out / "planted.jsonl"
    done = [json.loads(line) for line in rows.read_text().splitlines()] if rows.is_file() else []
    planted = {row["place"]: Planted(**row) for row in done}

    def test_one(change: Change) -> None:
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
        list(pool.map(test_one, changes))
    return [planted[f"{name}:{line}:{column}"] for name, line, column, *_ in changes]


def main() -> None:
    """Make changes, and print those that no test detected."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output-dir", type=Path, required=True, help="folder for copies and results"
    )
    parser.add_argument("--places", type=int, default=200, help="number of changes")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the changes")
    parser.add_argument(
        "--jobs", type=int, default=1, help="changes tested in parallel, one core each"
    )
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
