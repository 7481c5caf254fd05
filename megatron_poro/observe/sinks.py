"""One interface for everything that takes metrics, and the set of them that a run file asks for."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_poro.config import ObserveConfig
from megatron_poro.observe.background import BackgroundSink
from megatron_poro.observe.jsonl import JsonLinesSink, MetricSink, Record
from megatron_poro.observe.tensorboard import TensorBoardSink, check_tensorboard
from megatron_poro.observe.wandb import DISABLED, build_target, check_wandb, wandb_mode
from megatron_poro.observe.wandb_process import ProcessSink


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
    """The sinks of a run: metrics.jsonl, and those that the run file asks for, each behind a thread. `config` is shown in wandb.

    Raises ConfigError when a package is missing for one of them.
    """
    path = run_directory / "metrics.jsonl"
    sinks: list[MetricSink] = [JsonLinesSink(path)]
    if observe.tensorboard:
        check_tensorboard()
        sinks.append(BackgroundSink("TensorBoard", lambda: TensorBoardSink(run_directory / "tensorboard")))
    if observe.wandb_project and (mode := wandb_mode(run_directory)) != DISABLED:
        check_wandb()
        target, earlier_bytes = build_target(observe, run_directory, config), path.stat().st_size
        sinks.append(BackgroundSink("wandb", lambda: ProcessSink(target, mode, earlier_bytes)))
    return SinkGroup(sinks)
