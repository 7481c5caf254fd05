"""Apply a function to a stream in several processes, in order and in bounded memory.

The executors of the standard library share queues and start their processes on demand; a worker killed at the wrong
moment can leave them waiting for ever. Here each worker has a pipe of its own, and a dead one is the end of its pipe.
"""

import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from data_indexing.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores this process may use, which in a Slurm job are fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], *, workers: int) -> Generator[Result, None, None]:
    """Results of `function` over `items`, in their order; close the generator to stop early.

    One worker is this process itself. With more, `function` is sent once to each of them, at most two items a worker
    are taken ahead of the results, and a worker that dies is a DataError, never a wait.
    """
    if workers == 1:
        yield from map(function, items)
        return
    team: list[_Worker] = []
    try:
        with _deaths_named():
            _start(team, function, workers)
        yield from _share_out(items, [worker.pipe for worker in team])
    finally:
        _stop(team)


@dataclass(frozen=True)
class _Worker:
    process: SpawnProcess
    pipe: Any


def _start(team: list[_Worker], function: Callable[[Any], Any], count: int) -> None:
    # spawn: a forked child of a process with threads (the progress bar, the tokenizer's own) can deadlock.
    context = get_context("spawn")
    for _ in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        team.append(_Worker(process, ours))
    # Sent when all are on their way, so that they load it side by side.
    message = bytes(ForkingPickler.dumps(function))
    for worker in team:
        worker.pipe.send_bytes(message)


def _share_out(items: Iterable[Any], pipes: list[Any]) -> Generator[Any, None, None]:
    """Give each idle worker one item: a second one in its pipe could block both ends."""
    numbered = enumerate(items)
    idle = list(pipes)
    busy: dict[Any, int] = {}
    results: dict[int, Any] = {}
    next_result = 0
    while True:
        while idle and len(busy) + len(results) < 2 * len(pipes):
            number, item = next(numbered, (-1, None))
            if number < 0:
                break
            with _deaths_named():
                idle[-1].send(item)
            busy[idle.pop()] = number
        if not busy:
            return
        for pipe in wait(list(busy)):
            results[busy.pop(pipe)] = _receive(pipe)
            idle.append(pipe)
        while next_result in results:
            yield results.pop(next_result)
            next_result += 1


def _receive(pipe: Any) -> Any:
    with _deaths_named():
        result, failure = pipe.recv()
    if failure is not None:
        raise RuntimeError(f"in a worker process:\n{failure}")
    return result


@contextmanager
def _deaths_named() -> Iterator[None]:
    """The end of a pipe, before or within a message, is the end of its worker."""
    try:
        yield
    except (EOFError, OSError):
        raise DataError("a worker process died, most often killed for memory; nothing was written, try fewer --workers") from None


def _stop(team: list[_Worker]) -> None:
    for worker in team:
        worker.process.kill()
    for worker in team:
        worker.process.join()
        worker.pipe.close()


def _work(pipe: Any) -> None:
    # The parent answers Ctrl-C; and one process is one core, so no threads of the tokenizer's own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        function = pipe.recv()
        while True:
            pipe.send(_call(function, pipe.recv()))
    except (EOFError, OSError):
        return  # the parent is gone


def _call(function: Callable[[Any], Any], item: Any) -> tuple[Any, str | None]:
    try:
        return function(item), None
    except Exception:
        return None, traceback.format_exc()
