"""Where metrics go: JSON lines always, wandb when the run file names a project. Loads no torch."""

from megatron_poro.observe.jsonl import JsonLinesSink, Record, read_metrics, read_records
from megatron_poro.observe.sinks import MetricSink, SinkGroup, open_sinks
from megatron_poro.observe.wandb import WandbSink

__all__ = ["JsonLinesSink", "MetricSink", "Record", "SinkGroup", "WandbSink", "open_sinks", "read_metrics", "read_records"]
