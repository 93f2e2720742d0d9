"""Pack the files of a data set into one tar archive."""

import os
import sys
import tarfile
from pathlib import Path

from tqdm import tqdm

from vidrobust.data.records import files_below, is_hidden
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.text import shown

# Files that are not packed: other archives, with their indices.
_LEFT_OUT = (".tar", ".tar.index")


def pack(root: Path, output: Path, *, overwrite: bool = False) -> tuple[int, int]:
    """Write all files below a folder into a tar archive, at once.

    The same names and contents give the same bytes: members are sorted, and have neither times nor
    owners. Links are followed. Hidden files, archives and their indices are left out. Empty folders
    are kept, because a folder may be a class.

    Args:
        root: the folder.
        output: the archive; its name ends in `.tar`.
        overwrite: whether an existing file is replaced.

    Returns:
        (files in the archive, files and folders that are left out).

    Raises:
        UserError: there is no file, one cannot be read, or the archive exists.
    """
    if output.suffix != ".tar":
        raise UserError(f"--output {output}: the name of an archive ends in .tar; rename it")
    if output.exists() and not overwrite:
        raise UserError(f"--output {output}: exists; give another name, or --overwrite")
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; give the name of a file")
    members, left_out = _members(root)
    files = [path for path, is_folder, _ in members if not is_folder]
    if not files:
        raise UserError(f"data.root={root}: holds no file; nothing is packed")
    tqdm.monitor_interval = 0
    interval_s = 0.1 if sys.stderr.isatty() else 30
    with (
        replacing(output) as out,
        tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar,
        tqdm(members, desc="pack", unit="file", mininterval=interval_s) as bar,
    ):
        for path, is_folder, name in bar:
            _add(tar, path, name, is_folder=is_folder)
    return len(files), left_out


def _members(top: Path) -> tuple[list[tuple[Path, bool, str]], int]:
    """Return what is packed, sorted, and the number of files and folders that are left out.

    What is packed is (path, whether it is a folder, name in the archive).

    Args:
        top: the folder that is packed.
    """
    found = {file.relative_to(top).as_posix(): (file, False) for file in files_below(top)}
    archives = [name for name in found if name.endswith(_LEFT_OUT)]
    for name in archives:
        del found[name]
    left_out = len(archives)
    # Folders without files: `files_below` yields none of them.
    for folder in top.rglob("*"):
        name = folder.relative_to(top).as_posix()
        # a hidden folder counts once, without what is in it
        left_out += is_hidden(folder.name) and not any(map(is_hidden, name.split("/")[:-1]))
        if folder.is_dir() and not any(map(is_hidden, name.split("/"))):
            found.setdefault(name, (folder, True))
    return [(*found[name], name) for name in sorted(found, key=os.fsencode)], left_out


def _add(tar: tarfile.TarFile, path: Path, name: str, *, is_folder: bool) -> None:
    """Add a file or folder to an archive.

    Args:
        tar: the archive.
        path: the file or folder.
        name: its name in the archive.
        is_folder: whether it is a folder.

    Raises:
        UserError: the file cannot be read, or becomes shorter while it is read.
    """
    info = tarfile.TarInfo(name)
    if is_folder:
        info.type = tarfile.DIRTYPE
        info.mode = 0o755
        tar.addfile(info)
        return
    try:
        with open(path, "rb") as source:
            info.size = os.fstat(source.fileno()).st_size
            tar.addfile(info, source)
    except OSError as error:
        if error.filename is not None:
            reason = f"cannot be read ({error.strerror})"
        elif error.errno is None:  # tarfile reports a source that is too short in this way
            reason = "has changed while it was packed"
        else:
            raise  # the archive cannot be written
        raise UserError(f"{shown(str(path), 300)}: {reason}; nothing is packed") from None
