"""Find a config file by path, or by name in `configs/`."""

from difflib import get_close_matches
from pathlib import Path

from vidrobust.utils.errors import UserError
from vidrobust.utils.text import shown

_PACKAGE = Path(__file__).resolve().parents[1]


def configs_folder() -> Path:
    """Return the folder of the config files.

    It is inside an installed package, and next to the package in a clone.
    """
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def find_config(name: str | Path) -> Path:
    """Return the path of a config file.

    Args:
        name: path of a file, or name of a file in `configs/` without its suffix
            (`ucf101_csl_adv`), which works from any working directory. A file at that path has
            priority.

    Raises:
        UserError: for a bare name that is neither a file nor in `configs/`.
    """
    path = Path(name)
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path  # a missing file is reported when it is read
    packaged = configs_folder() / f"{name}.yaml"
    if packaged.is_file():
        return packaged
    names = sorted(file.stem for file in configs_folder().glob("*.yaml"))
    close = get_close_matches(str(name), names, n=1, cutoff=0.5)
    remedy = f"did you mean {close[0]!r}?" if close else "give a path"
    raise UserError(
        f"--cfg {shown(str(name))}: no such file, and none of that name in {configs_folder()}; "
        + remedy
    )


def protocol_file(name: str) -> Path | None:
    """Return the config file of a protocol, or None for one without or an unknown one."""
    path = configs_folder() / "protocols" / f"{name}.yaml"
    return path if "/" not in name and path.is_file() else None
