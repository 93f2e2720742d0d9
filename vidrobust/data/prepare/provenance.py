"""prepared.json: how a folder of copies was made, and from which files."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidrobust.utils.atomic_files import held, read_json, replacing
from vidrobust.utils.errors import UserError

MARK = "prepared.json"
_REMEMBERED = 16  # number of sources whose sizes are kept, about
_FEW = 4  # sizes of fewer sources do not identify a data set


def read_mark(folder: str | Path) -> dict[str, Any] | None:
    """Return the options with which a folder's copies were made.

    `sources` in it holds the sizes in bytes of some source files, by name. The result is None if
    there is no prepared.json. Raises UserError if it is damaged.
    """
    mark = Path(folder).expanduser() / MARK
    if not mark.is_file():
        return None
    remedy = "delete the folder, and make it again with datasets/prepare.py"
    options = read_json(mark, remedy)
    if not isinstance(options.get("sources", {}), dict):
        raise UserError(f"{mark}: damaged: its sources are not a JSON object; {remedy}")
    return options


@contextmanager
def claim(output: Path, options: dict[str, Any], sources: Mapping[str, str]) -> Iterator[None]:
    """Create a folder for copies, or continue in one with the same options.

    Inside the context the folder belongs to this process.

    Args:
        output: the folder.
        options: how the copies are made.
        sources: name of a copy in the folder -> its source file.

    Raises:
        UserError: the folder holds other files, copies made with other options, or copies of other
            files; or another process is writing to it.
    """
    _begin(output, options, sources)
    with held(
        output / MARK, "another process writes {}; wait for it or stop it, or give another --output"
    ):
        yield


def _begin(output: Path, options: dict[str, Any], sources: Mapping[str, str]) -> None:
    """Create the folder with its mark, unless it holds an equal one.

    Args:
        output: the folder.
        options: how the copies are made.
        sources: name of a copy in the folder -> its source file.
    """
    # Continue in a folder only if it holds copies with the same options, of the same files.
    existing = read_mark(output)
    if existing is not None:
        sizes = existing.pop("sources", {})
        if existing != options:
            differ = (
                f"{key}={existing.get(key)}, not {options.get(key)}"
                for key in sorted({*existing, *options})
                if existing.get(key) != options.get(key)
            )
            raise UserError(
                f"{output} holds files of another encoding ({'; '.join(differ)}); give another"
                " --output, or delete it"
            )
        sizes_now = {name: size_of(sources[name]) for name in sizes if name in sources}
        if not same_sources(sizes, sizes_now):
            raise UserError(
                f"{output} holds copies of another data set's files; give another --output, or"
                " delete it"
            )
        return
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"{output} holds other files; give an empty folder as --output")
    output.mkdir(parents=True, exist_ok=True)
    # Remember the sizes of about _REMEMBERED files, evenly spaced in the sorted list of names.
    names = sorted(sources)
    step = -(-len(names) // _REMEMBERED) or 1
    sizes = {name: size_of(sources[name]) for name in names[::step]}
    with replacing(output / MARK) as file:
        file.write(json.dumps(options | {"sources": sizes}).encode())


def same_sources(sizes: Mapping[str, int], sizes_now: Mapping[str, int]) -> bool:
    """Return whether at least half of the remembered files still have their sizes.

    Of very few files any may have changed, so the answer is then yes.

    Args:
        sizes: remembered size of some files, in bytes, by name.
        sizes_now: size of the files now.
    """
    if len(sizes) < _FEW:
        return True
    unchanged = sum(sizes_now.get(name) == size for name, size in sizes.items())
    return 2 * unchanged >= len(sizes)


def size_of(path: str | Path) -> int:
    """Return the size in bytes of a file, or of the files in a folder; -1 if there is none."""
    entry = Path(path)
    if entry.is_dir():
        return sum(file.stat().st_size for file in entry.iterdir())
    return entry.stat().st_size if entry.is_file() else -1
