"""Where metrics go: JSON lines always, wandb and TensorBoard when the run file says so. Loads no torch."""

from megatron_poro.observe.jsonl import JsonLinesSink, MetricSink, Record, read_metrics, read_records
from megatron_poro.observe.sinks import SinkGroup, open_sinks

__all__ = ["JsonLinesSink", "MetricSink", "Record", "SinkGroup", "open_sinks", "read_metrics", "read_records"]
