"""What ends a launcher ends it once, in order."""

import os
import signal
import time

import pytest

from anml.jobs.interrupts import ended_as_by_ctrl_c


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def test_a_second_signal_does_not_break_off_the_orderly_end():
    with ended_as_by_ctrl_c():
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
        for number in (signal.SIGTERM, signal.SIGINT):
            send(number)
