"""Errors of threads that the main thread raises as well are not printed twice."""

import threading

import pytest

from vidrobust.utils import logging as our_logging


class _Writer(threading.Thread):
    """Keeps its error for the main thread, as TensorBoard's writer does, or does not."""

    def __init__(self, *, keeps: bool) -> None:
        super().__init__()
        self.exception = None
        self._keeps = keeps

    def run(self) -> None:
        error = OSError("no space")
        if self._keeps:
            self.exception = error
        raise error


@pytest.mark.parametrize("keeps", [True, False])
def test_an_error_that_a_thread_keeps_for_the_main_one_is_not_printed(monkeypatch, keeps):
    printed = []
    monkeypatch.setattr(our_logging, "_print_error", printed.append)
    monkeypatch.setattr(threading, "excepthook", our_logging.print_error_of_thread)
    thread = _Writer(keeps=keeps)
    thread.start()
    thread.join()
    assert len(printed) == (not keeps)
