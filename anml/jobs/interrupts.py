"""Ctrl-C, SIGTERM and SIGHUP at a launcher: they end it in one orderly way, and never amid a submission."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP of a closed terminal, do what Ctrl-C does: else what was begun would go on alone.

    Only the first one counts: a second, which `make` and `timeout` send, would break off the orderly end.
    """
    asked = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if not asked.is_set():
            asked.set()
            raise KeyboardInterrupt

    with _handled_by(end):
        yield


@contextmanager
def held_back(stop: threading.Event) -> Iterator[None]:
    """Let these signals wait for the end of the block, which then raises KeyboardInterrupt. stop: set at the signal."""
    with _handled_by(lambda number, frame: stop.set()):
        try:
            yield
        finally:
            if stop.is_set():
                raise KeyboardInterrupt


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Only there may handlers be set.
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDING}
    taken = [number for number, earlier in before.items() if earlier != signal.SIG_IGN]  # Under nohup SIGHUP is.
    try:
        for number in taken:
            signal.signal(number, handler)
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
