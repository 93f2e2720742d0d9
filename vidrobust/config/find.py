"""Find a config file by path, or by name among those of the package."""

from difflib import get_close_matches
from pathlib import Path

from vidrobust.utils.errors import UserError
from vidrobust.utils.text import shown

_PACKAGE = Path(__file__).resolve().parents[1]


def configs_folder() -> Path:
    """Return the folder of the config files: inside an installed package, beside it in a clone."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def find_config(name: str | Path) -> Path:
    """Return the path of a config file.

    Args:
        name: a path, or the name of a file of `configs/` without its suffix (`ucf101_csl_adv`),
            which is found from any working directory. A file of that path comes first.

    Raises:
        UserError: for a bare name that is neither a file nor one of `configs/`.
    """
    path = Path(name)
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path  # whoever reads it refuses what is not there
    packaged = configs_folder() / f"{name}.yaml"
    if packaged.is_file():
        return packaged
    known = sorted(file.stem for file in configs_folder().glob("*.yaml"))
    close = get_close_matches(str(name), known, n=1, cutoff=0.5)
    raise UserError(
        f"--cfg {shown(str(name))}: no such file, and none of that name in {configs_folder()}; "
        + (f"did you mean {close[0]!r}?" if close else "give a path")
    )
