"""One interface for everything that takes metrics, and the set of them that a run file asks for."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from megatron_poro.config import ObserveConfig
from megatron_poro.observe.jsonl import JsonLinesSink, Record
from megatron_poro.observe.wandb import WandbSink


class MetricSink(Protocol):
    """Takes records; see `jsonl.py` for what is in one."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """Flush and close."""


class SinkGroup:
    """Writes to several sinks. One that fails costs a warning, not the run: it is dropped."""

    def __init__(self, sinks: Sequence[MetricSink]) -> None:
        self._sinks = list(sinks)

    def write(self, record: Record) -> None:
        """Give `record` to every sink."""
        for sink in list(self._sinks):
            try:
                sink.write(record)
            except Exception as error:
                self._drop(sink, error)

    def close(self) -> None:
        """Close every sink."""
        for sink in list(self._sinks):
            try:
                sink.close()
            except Exception as error:
                self._drop(sink, error)

    def _drop(self, sink: MetricSink, error: Exception) -> None:
        print(f"warning: {type(sink).__name__} failed and is left out from here on: {error}", file=sys.stderr)
        self._sinks.remove(sink)


def open_sinks(observe: ObserveConfig, run_directory: Path, config: dict[str, Any]) -> SinkGroup:
    """The sinks of a run: metrics.jsonl, and wandb when a project is named. `config` is shown in wandb."""
    sinks: list[MetricSink] = [JsonLinesSink(run_directory / "metrics.jsonl")]
    if observe.wandb_project:
        sinks.append(WandbSink(observe, run_directory, config))
    return SinkGroup(sinks)
