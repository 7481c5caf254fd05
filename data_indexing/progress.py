"""Show how far a command is, on stderr: a bar on a terminal, one closing line in a log file."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

_LINE_SECONDS = 60.0
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Advance(Protocol):
    """Tell of so much more that is done and, if given, what else there is to say."""

    def __call__(self, amount: int, note: str = "", /) -> None:
        """See there."""


@contextmanager
def progress(description: str, total: int, unit: str) -> Iterator["Advance"]:
    """Yield `advance(amount, note)`; the bar shows amount, rate, note and time left. `unit` is a symbol such as "B"."""
    shown = _bar(description, total, unit) if sys.stderr.isatty() else _lines(description, total, unit)
    with shown as advance:
        yield advance


@contextmanager
def _lines(description: str, total: int, unit: str) -> Iterator[Advance]:
    """A line a minute and one at the end."""
    start = last = time.monotonic()
    done, said = 0, ""

    def advance(amount: int, note: str = "", /) -> None:
        nonlocal done, said, last
        done, said = done + amount, note
        if time.monotonic() - last >= _LINE_SECONDS:
            last = time.monotonic()
            left = (total - done) * (last - start) / max(done, 1)
            say(f"{_amount(done, unit)} of {_amount(total, unit)}", f", {left:.0f} s left")

    def say(amount: str, rest: str) -> None:
        seconds = time.monotonic() - start
        rate = _amount(done / max(seconds, 1e-9), unit)
        print(f"{description}: {amount} in {seconds:.1f} s ({rate}/s){said and ', '}{said}{rest}", file=sys.stderr, flush=True)

    yield advance
    say(_amount(done, unit), "")


@contextmanager
def _bar(description: str, total: int, unit: str) -> Iterator[Advance]:
    # Imported here: rich takes longer to import than most commands take to answer.
    from rich import progress as rich_progress
    from rich.console import Console
    from rich.table import Column

    # On a narrow terminal the end of the text gives way: the note.
    text = rich_progress.TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"))
    name = rich_progress.TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=len(description)))
    bar = rich_progress.Progress(name, rich_progress.BarColumn(10), text, console=Console(stderr=True), expand=True)
    with bar:
        task = bar.add_task(description, total=total, text="")

        def advance(amount: int, note: str = "", /) -> None:
            bar.update(task, advance=amount)
            now = bar.tasks[task]
            rate = _amount(now.completed / max(now.elapsed or 0, 1e-9), unit)
            left = timedelta(seconds=int(now.time_remaining)) if now.time_remaining is not None else "-:--:--"
            shown = f"{_amount(now.completed, unit)} of {_amount(total, unit)}, {rate}/s, {left} left{note and ', '}{note}"
            bar.update(task, text=shown)

        yield advance


def _amount(number: float, unit: str) -> str:
    for scale, prefix in _SCALES:
        if number >= scale:
            return f"{number / scale:.1f} {prefix}{unit}"
    return f"{number:.0f} {unit}"
