"""Report installed packages that are too old."""

from importlib import metadata

from packaging.requirements import Requirement


def too_old() -> list[str]:
    """Return a line for each installed package that is older than vidrobust requires.

    The list is empty if vidrobust itself is not installed, as in a clone: its requirements are
    unknown then.
    """
    try:
        required = metadata.requires("vidrobust") or []
    except metadata.PackageNotFoundError:
        return []
    lines = []
    for requirement in map(Requirement, required):
        # requirements of extras, and of other platforms, do not count
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue  # its import raises an error that names it
        if not requirement.specifier.contains(installed, prereleases=True):
            lines.append(
                f"{requirement.name} {installed} is installed, and vidrobust needs "
                f"{requirement.name}{requirement.specifier}: pip install -U '{requirement}'"
            )
    return lines


def require() -> None:
    """Raise ImportError, in one line, if an installed package is too old."""
    if lines := too_old():
        raise ImportError("; ".join(lines))
