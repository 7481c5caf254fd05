"""Every metric: name, unit, formula, where it comes from. wandb, TensorBoard, the report and docs/metrics.md go by this list."""

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_poro.observe.jsonl import Record

Numbers = dict[str, float]


@dataclass(frozen=True)
class Metric:
    """A metric of the records of one event, under `key` in them.

    A name that ends in `/*` stands for one metric for each entry of a table: of a source, a held-out set, a phase.
    """

    name: str
    event: str
    key: str
    unit: str
    meaning: str
    source: str

    @property
    def is_table(self) -> bool:
        """Whether it is one for each entry of a table."""
        return self.name.endswith("/*")


METRICS = (
    Metric(
        "train/loss",
        "step",
        "loss",
        "nats per token",
        "mean over the tokens of the global batch, before the step's update",
        "the model's cross-entropy in fp32, summed in float64 over microbatches, data and context ranks",
    ),
    Metric("train/perplexity", "step", "perplexity", "", "e to the loss", "train/loss"),
    Metric(
        "train/learning_rate",
        "step",
        "learning_rate",
        "",
        "the rate of the step's update",
        "the step number and the run file",
    ),
    Metric(
        "train/gradient_norm",
        "step",
        "gradient_norm",
        "",
        "root of the sum of squares of all gradients of the global batch, before clipping",
        "megatron-core's optimizer, over all ranks",
    ),
    Metric(
        "train/parameter_norm",
        "step",
        "parameter_norm",
        "",
        "root of the sum of squares of all weights after the step, every observe.parameter_norm_every_steps",
        "the weights that the model computes with, summed in float64, each counted once",
    ),
    Metric(
        "train/updated", "step", "updated", "0 or 1", "whether the step changed the weights; 0 for a bad one", "docs/operations.md"
    ),
    Metric(
        "loss_by_source/*",
        "step",
        "losses",
        "nats per token",
        "mean over the step's tokens that are of the source",
        "as train/loss; the source of a sample is the order's",
    ),
    Metric("tokens_by_source/*", "step", "source_tokens", "tokens", "tokens read of the source since the run began", "the ledger"),
    Metric(
        "validation_loss/*",
        "validation",
        "losses",
        "nats per token",
        "mean over the held-out set",
        "as train/loss, without dropout",
    ),
    Metric("validation_perplexity/*", "validation", "perplexities", "", "e to the validation loss", "validation_loss"),
    Metric("validation/seconds", "validation", "seconds", "s", "time that all held-out sets took", "rank 0's clock"),
    Metric("progress/tokens", "step", "tokens", "tokens", "read since the run began, repeated ones counted once", "the ledger"),
    Metric("progress/samples", "step", "samples", "sequences", "position in the run's order of samples", "the ledger"),
    Metric(
        "throughput/tokens_per_second",
        "step",
        "tokens_per_second",
        "tokens/s",
        "tokens of the global batch / time/step",
        "time/step",
    ),
    Metric(
        "throughput/tokens_per_second_per_device",
        "step",
        "tokens_per_second_per_device",
        "tokens/s",
        "tokens per second / number of ranks",
        "throughput/tokens_per_second",
    ),
    Metric(
        "throughput/model_tflops_per_device",
        "step",
        "model_tflops_per_device",
        "TFLOP/s",
        "tokens per second and device x FLOPs of a token, forward and backward, causal attention counted half, nothing for "
        "recomputation (Megatron-LM's convention since March 2025)",
        "observe/flops.py",
    ),
    Metric(
        "throughput/mfu",
        "step",
        "mfu",
        "",
        "model TFLOP/s per device / the device's dense bf16 peak; on a CPU / a matrix product measured at the start",
        "observe/flops.py",
    ),
    Metric(
        "throughput/mfu_full_attention",
        "step",
        "mfu_full_attention",
        "",
        "the same with all of attention counted (Megatron-LM before March 2025, PaLM)",
        "observe/flops.py",
    ),
    Metric("time/step", "step", "seconds", "s", "one step, from its data to its update", "rank 0's clock"),
    Metric(
        "time/*",
        "step",
        "phase_seconds",
        "s",
        "part of time/step; `backward` contains waiting for other stages, `gradients` waiting for other ranks",
        "rank 0's clock",
    ),
    Metric("time/data_wait", "step", "data_wait_seconds", "s", "longest that a rank waited for its samples", "all ranks' clocks"),
    Metric(
        "time/save_stall",
        "step",
        "save_stall_seconds",
        "s",
        "training stood still for a checkpoint since the last record",
        "rank 0's clock",
    ),
    Metric(
        "memory/device",
        "step",
        "device_memory_bytes",
        "bytes",
        "most that any rank's device had in tensors since the start",
        "torch.cuda.max_memory_allocated; on a CPU absent",
    ),
    Metric("memory/host", "step", "host_memory_bytes", "bytes", "largest resident set of a rank's process", "/proc/self/statm"),
    Metric("checkpoint/seconds", "checkpoint", "seconds", "s", "from the start of a save until it counts", "rank 0's clock"),
    Metric(
        "speed/*",
        "speed",
        "slowest",
        "",
        "slowest rank's seconds / the median's, at getting data, in the forward passes, at a fixed amount of products",
        "all ranks' clocks, every faults.straggler_every_steps",
    ),
)
"""In the order of docs/metrics.md. The part of a name before the first `/` is its section."""


def numbers_of(record: Record) -> Numbers:
    """The metrics of a record by their names: {"train/loss": 2.3, "loss_by_source/fi": 2.5, ...}; empty for other events."""
    found: Numbers = {}
    for metric in _OF_EVENT.get(record["event"], ()):
        found.update(_read(metric, record))
    return found


def _read(metric: Metric, record: Record) -> Iterator[tuple[str, float]]:
    value = record.get(metric.key)
    if metric.is_table and isinstance(value, dict):
        yield from ((metric.name[:-1] + str(entry), float(number)) for entry, number in value.items())
    elif isinstance(value, int | float):
        yield metric.name, float(value)


_OF_EVENT = {event: [metric for metric in METRICS if metric.event == event] for event in {metric.event for metric in METRICS}}
