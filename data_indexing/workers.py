"""Apply a function to a stream in several processes, in order and in bounded memory.

The executors of the standard library share queues and start their processes on demand; a worker killed at the wrong
moment can leave them waiting for ever. Here each worker has a socket of its own, and a dead one is the end of its socket.

A team begins as one fresh interpreter (this file, run as a program), which gets the function, prepares it once and then
forks: a tokenizer is built once for all workers, and no thread of the caller can be caught in the fork.
"""

import ctypes
import os
import pickle
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, Self, TypeVar

from data_indexing import messages
from data_indexing.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Of the items above this size one is under way at a time, so that memory does not grow with the number of workers.
LARGE_ITEM_BYTES = 16 << 20
_END = object()


def available_cores() -> int:
    """Cores this process may use, which in a Slurm job are fewer than the machine has."""
    return len(os.sched_getaffinity(0))


class Team:
    """Worker processes that hold one function, as a context manager that ends them.

    The function is pickled, so it is one that a fresh interpreter can import; its `prepare()`, if it has one, runs before
    the processes part.
    """

    def __init__(self, function: Callable[[Item], Result], workers: int) -> None:
        """Start them; they get ready while the caller goes on."""
        pairs = [socket.socketpair() for _ in range(workers)]
        self.connections = [ours for ours, _ in pairs]
        theirs = [their.fileno() for _, their in pairs]
        paths = os.pathsep.join(path or "." for path in sys.path)
        with TemporaryFile() as stream:
            pickle.dump(function, stream, protocol=5)
            stream.seek(0)
            self._host = subprocess.Popen(
                [sys.executable, "-m", "data_indexing.workers", *map(str, theirs)],
                stdin=stream,
                pass_fds=theirs,
                env=os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                process_group=0,
            )
        for _, their in pairs:
            their.close()

    def map_in_order(self, items: Iterable[Any], *, num_bytes: Callable[[Any], int] = lambda _: 0) -> Generator[Any, None, None]:
        """Results of the function over `items`, in their order; at most two items a worker are taken ahead of them.

        `num_bytes` tells large items from small ones. A worker that dies is a DataError, never a wait; an exception in a
        worker is raised here, with its traceback unless it is a DataError.
        """
        return _share_out(iter(items), self.connections, num_bytes)

    def __enter__(self) -> Self:
        """Give the team."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """End all processes at once, whatever they do."""
        with suppress(ProcessLookupError):
            os.killpg(self._host.pid, signal.SIGKILL)
        self._host.wait()
        for connection in self.connections:
            connection.close()


def ask(connection: socket.socket, item: Any) -> Any:
    """Have one worker of a team treat one item, and wait for the result."""
    with deaths_named():
        messages.send(connection, item)
    return _receive(connection)


@contextmanager
def deaths_named() -> Iterator[None]:
    """The end of a socket, before or within a message, is the end of its worker."""
    try:
        yield
    except (EOFError, OSError):
        raise DataError(
            "a worker process died, most often killed for memory; run the same command again, with fewer --workers"
        ) from None


def _share_out(
    items: Iterator[Any], connections: list[socket.socket], num_bytes: Callable[[Any], int]
) -> Generator[Any, None, None]:
    """Give each idle worker one item: a second one in its socket could block both ends."""
    idle = list(connections)
    busy: dict[socket.socket, int] = {}
    large: set[int] = set()
    results: dict[int, Any] = {}
    taken = given = 0
    waiting = next(items, _END)
    while waiting is not _END or busy:
        while waiting is not _END and idle and len(busy) + len(results) < 2 * len(connections):
            if num_bytes(waiting) > LARGE_ITEM_BYTES:
                if large:
                    break
                large.add(taken)
            with deaths_named():
                messages.send(idle[-1], waiting)
            busy[idle.pop()] = taken
            taken += 1
            waiting = next(items, _END)
        for connection in wait(list(busy)):
            number = busy.pop(connection)  # type: ignore[arg-type]
            results[number] = _receive(connection)  # type: ignore[arg-type]
            large.discard(number)
            idle.append(connection)  # type: ignore[arg-type]
        while given in results:
            yield results.pop(given)
            given += 1


def _receive(connection: socket.socket) -> Any:
    with deaths_named():
        result, error, trace = messages.receive(connection)
    if isinstance(error, DataError):
        raise error
    if trace is not None:
        raise RuntimeError(f"in a worker process:\n{trace}")
    return result


def _host(numbers: list[int]) -> None:
    """Take the function from stdin, prepare it, and fork a worker for each connection."""
    # The parent answers Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connections = [socket.socket(fileno=number) for number in numbers]
    function = pickle.load(sys.stdin.buffer)  # noqa: S301 -- from `Team` above
    failure = _call(lambda _: function.prepare(), None) if hasattr(function, "prepare") else (None, None, None)
    _release_memory()
    for number, connection in enumerate(connections[1:], start=1):
        if os.fork() == 0:
            for other in connections[:number] + connections[number + 1 :]:
                other.close()
            _work(connection, function, failure)
            os._exit(0)
    for other in connections[1:]:
        other.close()
    _work(connections[0], function, failure)


def _release_memory() -> None:
    """Give back what the preparation needed for a while: most of a tokenizer's memory is that of reading its definition."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _work(connection: socket.socket, function: Callable[[Any], Any], failure: tuple[Any, Any, Any]) -> None:
    try:
        while True:
            item = messages.receive(connection)
            messages.send(connection, failure if failure[2] else _call(function, item))
    except (EOFError, OSError):
        return  # the parent is gone


def _call(function: Callable[[Any], Any], item: Any) -> tuple[Any, Exception | None, str | None]:
    try:
        return function(item), None, None
    except DataError as error:
        return None, error, traceback.format_exc()
    except Exception:
        return None, None, traceback.format_exc()


if __name__ == "__main__":
    _host([int(word) for word in sys.argv[1:]])
