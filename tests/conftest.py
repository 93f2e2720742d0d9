import importlib
import os
import random

# Tests run in several processes and start others: one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# before torch: it sets how the threads of OpenMP wait, here and in processes that tests start
import vidrobust  # noqa: F401, I001
import numpy as np
import pytest
import torch

from tests.helpers import tiny_ucf101
from vidrobust.evaluation.report import drawing
from vidrobust.models.complexity import Complexity
from vidrobust.utils.logging import log, stop_logging


def pytest_collection_modifyitems(items):
    """Begin with the slow files: at the end they would keep one of two processes waiting."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _random_numbers_of_its_own():
    """Seed the generators before each test.

    Fixtures of a module or the session run earlier, with whatever numbers the generators then give.
    """
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    """A test that starts a run leaves the package's logger silent for those that follow it."""
    yield
    stop_logging()
    log.propagate = True


# what takes longer than a tiny evaluation: (module, name, what takes its place)
_COSTLY = [
    (drawing, "save", lambda figure, path: path.write_bytes(b"")),
    *(
        (
            importlib.import_module(module),
            "model_complexity",
            lambda model, shape: Complexity(sum(p.numel() for p in model.parameters()), None),
        )
        for module in ("vidrobust.training.setup", "vidrobust.evaluation.evaluate")
    ),
]
_WHOLE = [(module, name, getattr(module, name)) for module, name, _ in _COSTLY]


def _in_place(replacements):
    """Set attributes, given as (module, name, value), until the fixture ends."""
    with pytest.MonkeyPatch.context() as patch:
        for each in replacements:
            patch.setattr(*each)
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_reports():
    """Leave the figures of reports empty, and the operations of models uncounted."""
    yield from _in_place(_COSTLY)


@pytest.fixture(scope="module")
def whole_reports(_short_reports):
    """Draw figures and count operations, as processes of their own do: for the rest of a file."""
    yield from _in_place(_WHOLE)


@pytest.fixture(scope="session")
def ucf(tmp_path_factory):
    """A tiny data set in UCF101's layout; tests do not change it."""
    return tiny_ucf101(tmp_path_factory.mktemp("ucf"))


@pytest.fixture
def exact():
    """Networks and losses in double precision, where two ways to one formula agree.

    In single, a signed attack may move a pixel whose gradient is 0 but for rounding up on the one
    way, down on the other, and a small network with fresh norms makes much of it.
    """
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
