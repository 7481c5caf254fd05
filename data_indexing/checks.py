"""Compare what the fast encoder gave with what the reference says, while the work goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Queue
from threading import Thread
from typing import Protocol

from data_indexing.checker import Checker, Sample
from data_indexing.encoders import EncoderFaultError
from data_indexing.errors import DataError
from data_indexing.tokenizer import TextTokenizer
from data_indexing.workers import Team, ask

# Samples that may wait: at some kB each, what the checker falls behind in a burst.
_WAITING_SAMPLES = 256
_SHOWN_CHARACTERS = 60


class Checks(Protocol):
    """Both raise EncoderFaultError once the reference is found to give other ids."""

    def check(self, sample: Sample) -> None:
        """Have a sample compared, now or soon."""
        ...

    def settle(self) -> None:
        """Wait until all samples are compared."""
        ...


@contextmanager
def sample_checks(tokenizer: TextTokenizer, *, inline: bool) -> Iterator[Checks]:
    """Checks whose reference runs in a process of its own unless `inline`; they are settled at the end of the block."""
    if inline:
        yield _Inline(Checker(tokenizer))
        return
    with Team(Checker(tokenizer), 1) as team:
        background = _Background(team)
        yield background
        background.settle()


@dataclass
class NoChecks:
    """For the reference itself."""

    def check(self, sample: Sample) -> None:
        """Nothing."""

    def settle(self) -> None:
        """Nothing."""


@dataclass
class _Inline(NoChecks):
    checker: Checker

    def check(self, sample: Sample) -> None:
        _refuse(self.checker(sample))


class _Background:
    """A thread that asks the team, one sample after the other."""

    def __init__(self, team: Team) -> None:
        self._team = team
        self._samples: Queue[Sample] = Queue(_WAITING_SAMPLES)
        self._difference: str | None = None
        self._error: DataError | None = None
        Thread(target=self._run, daemon=True).start()

    def check(self, sample: Sample) -> None:
        self._raise()
        self._samples.put(sample)

    def settle(self) -> None:
        self._samples.join()
        self._raise()

    def _raise(self) -> None:
        _refuse(self._difference)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        """Take every sample, also after an end: nobody may wait for a full queue."""
        while True:
            sample = self._samples.get()
            if self._difference is None and self._error is None:
                try:
                    self._difference = ask(self._team.connections[0], sample)
                except DataError as error:
                    self._error = error
            self._samples.task_done()


def _refuse(difference: str | None) -> None:
    if difference is not None:
        raise EncoderFaultError(f"other ids than the reference for {difference[:_SHOWN_CHARACTERS]!r}")
