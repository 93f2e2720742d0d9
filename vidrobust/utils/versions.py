"""Report installed packages that are too old."""

from importlib import metadata

from packaging.requirements import Requirement


def too_old() -> list[str]:
    """Return a line for each installed package that is older than this package promises to take.

    Nothing is known where this package itself is not installed, as in a clone alone.
    """
    try:
        required = metadata.requires("vidrobust") or []
    except metadata.PackageNotFoundError:
        return []
    lines = []
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue  # its import says so
        if not requirement.specifier.contains(installed, prereleases=True):
            lines.append(
                f"{requirement.name} {installed} is installed, and vidrobust needs "
                f"{requirement.name}{requirement.specifier}: pip install -U '{requirement}'"
            )
    return lines


def require() -> None:
    """Raise ImportError, in one line, where an installed package is too old."""
    if lines := too_old():
        raise ImportError("; ".join(lines))
