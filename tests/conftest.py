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
from vidrobust.utils.logging import log, stop_logging


def pytest_collection_modifyitems(items):
    """Begin with the slow files: at the end they would keep one of two processes waiting."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _random_numbers_of_its_own():
    """Give a test the random numbers that it has when it runs alone."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    """A test that starts a run leaves the package's logger silent for those that follow it."""
    yield
    stop_logging()
    log.propagate = True


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the figures of reports empty: to draw them takes longer than a tiny evaluation."""
    monkeypatch.setattr(drawing, "save", lambda figure, path: path.write_bytes(b""))


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
