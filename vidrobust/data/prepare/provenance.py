"""prepared.json: how a folder of copies was made, and from which files."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidrobust.utils.atomic_files import held, read_json, replacing
from vidrobust.utils.errors import UserError

MARK = "prepared.json"
_REMEMBERED = 16  # sources whose sizes are kept
_FEW = 4


def read_mark(folder: str | Path) -> dict[str, Any] | None:
    """Return the options of the copies, and `sources`, name -> bytes of some of their files.

    None where there is no mark. Raises UserError for a mark that is damaged.
    """
    mark = Path(folder).expanduser() / MARK
    if not mark.is_file():
        return None
    remedy = "delete the folder, and make it again with datasets/prepare.py"
    options = read_json(mark, remedy)
    if not isinstance(options.get("sources", {}), dict):
        raise UserError(f"{mark}: damaged: its sources are no JSON object; {remedy}")
    return options


@contextmanager
def claim(output: Path, options: dict[str, Any], sources: Mapping[str, str]) -> Iterator[None]:
    """Make a folder for copies, or go on in one that holds the same; until the context ends it is
    this process's.

    sources: name of a copy in the folder -> the file that it is of. Raises UserError where there
    are other files, copies that were made otherwise, or copies of other files, and where another
    process writes.
    """
    _begin(output, options, sources)
    with held(
        output / MARK, "another process writes {}; wait for it or stop it, or give another --output"
    ):
        yield


def _begin(output: Path, options: dict[str, Any], sources: Mapping[str, str]) -> None:
    """Make the folder with its mark, where it has none of the same."""
    there = read_mark(output)
    if there is not None:
        sizes = there.pop("sources", {})
        if there != options:
            differ = (
                f"{key}={there.get(key)}, not {options.get(key)}"
                for key in sorted({*there, *options})
                if there.get(key) != options.get(key)
            )
            raise UserError(
                f"{output} holds files of another encoding ({'; '.join(differ)}); give another"
                " --output, or delete it"
            )
        if not same_sources(
            sizes, {name: size_of(sources[name]) for name in sizes if name in sources}
        ):
            raise UserError(
                f"{output} holds copies of another data set's files; give another --output, or"
                " delete it"
            )
        return
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"{output} holds other files; give an empty folder as --output")
    output.mkdir(parents=True, exist_ok=True)
    names = sorted(sources)
    some = names[:: -(-len(names) // _REMEMBERED) or 1]
    with replacing(output / MARK) as file:
        file.write(
            json.dumps(
                options | {"sources": {name: size_of(sources[name]) for name in some}}
            ).encode()
        )


def same_sources(sizes: Mapping[str, int], there: Mapping[str, int]) -> bool:
    """Whether half of the files that a mark remembers are there with their sizes. Of few, any may
    have changed.
    """
    return len(sizes) < _FEW or 2 * sum(
        there.get(name) == size for name, size in sizes.items()
    ) >= len(sizes)


def size_of(path: str | Path) -> int:
    """Bytes of a file, or of those in a folder of frames; -1 where there is none."""
    place = Path(path)
    if place.is_dir():
        return sum(file.stat().st_size for file in place.iterdir())
    return place.stat().st_size if place.is_file() else -1
