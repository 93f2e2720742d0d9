import os

# tests run in processes beside each other, and start others: a thread each
os.environ.setdefault("OMP_NUM_THREADS", "1")

import vidrobust  # noqa: F401, I001  (before torch: it says how OpenMP's threads wait, here and in processes of tests)
import pytest

from tests.helpers import tiny_ucf101


@pytest.fixture(scope="session")
def ucf(tmp_path_factory):
    """A tiny data set in UCF101's layout; tests do not change it."""
    return tiny_ucf101(tmp_path_factory.mktemp("ucf"))
