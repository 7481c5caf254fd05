"""A signal asks the run to save and end after the current step; the same signal again ends the process at once."""

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Whether this process was asked to stop. One rank's request stops all: ranks compare notes with each step's losses."""

    def __init__(self) -> None:
        self.is_made = False

    def listen(self) -> None:
        """Take the stop signals from here on."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_made = True
        signal.signal(number, signal.SIG_DFL)
