"""What the run is asked for from outside: a signal or the file `stop` ends it after the current step, saved; `save` saves it.

A second Ctrl-C or SIGTERM ends the process at once. SIGUSR1 and SIGUSR2, which Slurm sends, never do.
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
STOP, SAVE = "stop", "save"
_LOOK_EVERY_SECONDS = 1.0
_SAME_SECONDS = 1.0
"""Slurm signals every process of a step, so a rank hears one signal twice: from Slurm and from its supervisor."""


class Requests:
    """What this process was asked for. One rank's request is all ranks': they compare notes with each step's losses.

    Files are looked for in `run_directory`, by one rank and at most once a second: a file system may be slow and shared.
    """

    def __init__(self, run_directory: Path | None) -> None:
        self._run_directory = run_directory
        self._looked = 0.0
        self._heard: dict[int, float] = {}
        self._stuck: set[str] = set()
        self.stop = self.save = False
        self.reason = ""
        """What asked this process to stop: a signal's name, or the file."""

    def listen(self) -> None:
        """Take the stop signals from here on, and those that came since the launcher started this process."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    @staticmethod
    def close() -> None:
        """Take no more of them: everything is saved, and Python's own end would leave them to kill the process."""
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def look(self) -> None:
        """Look for the files, now and then."""
        if self._run_directory is not None and time.monotonic() >= self._looked + _LOOK_EVERY_SECONDS:
            self._looked = time.monotonic()
            if self._is_there(STOP):
                self.stop, self.reason = True, self.reason or f"the file {self._run_directory / STOP}"
            self.save = self._is_there(SAVE)

    def clear(self, name: str) -> None:
        """Remove the file `name`: it was heeded. One that cannot be removed is heeded once."""
        if self._run_directory is not None:
            try:
                (self._run_directory / name).unlink(missing_ok=True)
            except OSError as error:
                self._stuck.add(name)
                print(f"warning: {error.filename}: {error.strerror}; it is not looked for any more", file=sys.stderr, flush=True)
            self.save = self.save and name != SAVE

    def _is_there(self, name: str) -> bool:
        return self._run_directory is not None and name not in self._stuck and os.path.exists(self._run_directory / name)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stop, self.reason = True, self.reason or signal.Signals(number).name
        is_urgent = number in (signal.SIGINT, signal.SIGTERM)
        if is_urgent and time.monotonic() - self._heard.setdefault(number, time.monotonic()) > _SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
