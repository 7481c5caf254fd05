"""TensorBoard as a sink: event files in RUN/tensorboard that give one curve over all restarts.

A start at step n writes the mark that makes TensorBoard forget what earlier files have of later steps (`purge_step` of torch's
SummaryWriter), so steps that were repeated or rolled back stand there once.
"""

import importlib.util
import os
import socket
import time
from pathlib import Path
from typing import Any

from megatron_poro.errors import ConfigError
from megatron_poro.observe.catalog import numbers_of
from megatron_poro.observe.jsonl import Record


def check_tensorboard() -> None:
    """Raise ConfigError when TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(["observe.tensorboard: tensorboard is not installed; `pip install tensorboard` or leave the key out"])


class TensorBoardSink:
    """Writes one event file for each start; each record reaches the kernel at once, so a killed process loses none."""

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # half a second
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._events, self._summaries = event_pb2, summary_pb2
        directory.mkdir(parents=True, exist_ok=True)
        self._file = open(_next_name(directory), "xb")  # noqa: SIM115 - lives as long as the run
        self._writer: Any = RecordWriter(self._file)
        self._add(time.time(), file_version="brain.Event:2")

    def write(self, record: Record) -> None:
        """Write the record's numbers at its step."""
        if record["event"] == "start":
            mark = self._events.SessionLog(status=self._events.SessionLog.START)
            self._add(record["time"], step=record["step"] + 1, session_log=mark)
        if numbers := numbers_of(record):
            values = [self._summaries.Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
            self._add(record["time"], step=record["step"], summary=self._summaries.Summary(value=values))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, wall_time: float, **content: Any) -> None:
        self._writer.write(self._events.Event(wall_time=wall_time, **content).SerializeToString())
        self._writer.flush()


def _next_name(directory: Path) -> Path:
    """TensorBoard reads files in the order of their names, which begin with a time in seconds; clocks of nodes may differ."""
    newest = max((int(path.name.split(".")[3]) for path in directory.glob("events.out.tfevents.*")), default=0)
    return directory / f"events.out.tfevents.{max(int(time.time()), newest + 1):010d}.{socket.gethostname()}.{os.getpid()}"
