"""Installed packages that are too old are reported in one line."""

import subprocess
import sys
from importlib import metadata

import pytest

from tests.helpers import REPO
from vidrobust.utils import versions

_REQUIRED = [
    "av>=15",
    "torch>=2.4",
    "decord2; sys_platform == 'nowhere'",
    "gone>=1",
    "pytest>=8; extra == 'test'",
]


@pytest.fixture
def installed(monkeypatch):
    """Versions of installed packages by name, with _REQUIRED as the requirements."""
    versions_by_name = {"av": "18.1.0", "torch": "2.14.1+cu130", "pytest": "7.0"}

    def version(name):
        if name not in versions_by_name:
            raise metadata.PackageNotFoundError(name)
        return versions_by_name[name]

    monkeypatch.setattr(metadata, "requires", lambda name: _REQUIRED)
    monkeypatch.setattr(metadata, "version", version)
    return versions_by_name


def test_new_enough_missing_and_irrelevant_packages_are_not_reported(installed):
    assert versions.too_old() == []
    versions.require()


def test_a_package_that_is_too_old_is_reported_with_the_remedy(installed):
    installed["av"] = "14.4.0"
    with pytest.raises(ImportError) as refused:
        versions.require()
    assert (
        str(refused.value)
        == "av 14.4.0 is installed, and vidrobust needs av>=15: pip install -U 'av>=15'"
    )


def test_a_clone_that_is_not_installed_has_no_requirements(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert versions.too_old() == []


def test_a_tool_reports_an_old_package_in_one_line():
    code = (
        "from importlib import metadata; metadata.requires = lambda name: ['av>=999']; import"
        " runpy, sys; sys.argv = ['x', '--help']; runpy.run_path(sys.argv[0], run_name='__main__')"
    ).replace("'x'", repr(str(REPO / "tools/train_net.py")))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: av ")
        and done.stderr.count("\n") == 1
    ), done.stderr
