"""Show how far a command is, on stderr: a bar on a terminal, one closing line in a log file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@contextmanager
def progress(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield `advance(amount)`; the bar shows amount, rate and time left. `unit` is a symbol such as "B"."""
    shown = _bar(description, total, unit) if sys.stderr.isatty() else _closing_line(description, unit)
    with shown as advance:
        yield advance


@contextmanager
def _closing_line(description: str, unit: str) -> Iterator[Callable[[int], None]]:
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        done += amount

    start = time.monotonic()
    yield advance
    seconds = time.monotonic() - start
    rate = _amount(done / max(seconds, 1e-9), unit)
    print(f"{description}: {_amount(done, unit)} in {seconds:.1f} s ({rate}/s)", file=sys.stderr)


@contextmanager
def _bar(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    # Imported here: rich takes longer to import than most commands take to answer.
    from rich import progress as rich_progress
    from rich.console import Console

    columns = ("{task.description}", rich_progress.BarColumn(), "{task.fields[rate]}", "left:")
    bar = rich_progress.Progress(*columns, rich_progress.TimeRemainingColumn(), console=Console(stderr=True))
    with bar:
        task = bar.add_task(description, total=total, rate="")

        def advance(amount: int) -> None:
            bar.update(task, advance=amount)
            now = bar.tasks[task]
            rate = _amount(now.completed / max(now.elapsed or 0, 1e-9), unit)
            bar.update(task, rate=f"{_amount(now.completed, unit)} of {_amount(total, unit)}, {rate}/s")

        yield advance


def _amount(number: float, unit: str) -> str:
    for scale, prefix in _SCALES:
        if number >= scale:
            return f"{number / scale:.1f} {prefix}{unit}"
    return f"{number:.0f} {unit}"
