"""A signal asks the run to save and end after the current step; the same signal again ends the process at once."""

import os
import signal
import time
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
SAME_SECONDS = 1.0
"""Slurm signals every process of a step, so a rank hears one signal twice: from Slurm and from its supervisor."""


class StopRequest:
    """Whether this process was asked to stop. One rank's request stops all: ranks compare notes with each step's losses."""

    def __init__(self) -> None:
        self.is_made = False
        self._first: dict[int, float] = {}

    def listen(self) -> None:
        """Take the stop signals from here on."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_made = True
        if time.monotonic() - self._first.setdefault(number, time.monotonic()) > SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
