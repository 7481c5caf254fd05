"""A sink that can never stop or slow a run: records wait in a queue, and a thread hands them on."""

import queue
import sys
import threading
from collections.abc import Callable

from megatron_poro.observe.jsonl import MetricSink, Record

QUEUE_RECORDS = 10_000
"""Records that wait at most: hours of steps for a few MB."""
CLOSE_SECONDS = 15.0
"""How long the end of a run waits for what is still in the queue; longer than sinks themselves wait for a server."""


class BackgroundSink:
    """Feeds the sink that `build` makes, from a thread that also makes and closes it.

    What goes wrong there costs one warning and the records: all of them when the sink fails or hangs, and those that find the queue
    full when it is slow.
    """

    def __init__(self, name: str, build: Callable[[], MetricSink]) -> None:
        self._name = name
        self._build = build
        self._queue: queue.Queue[Record | None] = queue.Queue(QUEUE_RECORDS)
        self._has_warned = False
        self._thread = threading.Thread(target=self._work, name=f"{name} sink", daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        """Put one record into the queue; returns at once."""
        if self._thread.is_alive():
            self._put(record)

    def close(self) -> None:
        """Give the thread some seconds for what is left."""
        if self._thread.is_alive():
            self._put(None)
            self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn(f"does not end within {CLOSE_SECONDS:.0f} s and is left behind")

    def _put(self, record: Record | None) -> None:
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._warn(f"is too slow; records beyond the {QUEUE_RECORDS:,} that wait for it are left out")

    def _work(self) -> None:
        try:
            sink = self._build()
            while (record := self._queue.get()) is not None:
                sink.write(record)
            sink.close()
        except Exception as error:
            line = (str(error).splitlines() or [""])[0]
            self._warn(f"failed and is left out from here on: {type(error).__name__}: {line}")

    def _warn(self, problem: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            print(f"warning: {self._name} {problem}; metrics.jsonl has everything", file=sys.stderr, flush=True)
