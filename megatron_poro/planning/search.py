"""All layouts of a job on so many devices: which fit, which is fastest, and why the next ones lose."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from megatron_poro.errors import LayoutError
from megatron_poro.planning.job import Job, on_layout
from megatron_poro.planning.machine import Machine
from megatron_poro.planning.memory import memory_of_stages
from megatron_poro.planning.times import StepTime, step_time
from megatron_poro.topology import Layout

MICRO_BATCHES = (1, 2, 4, 8)
CONTEXTS = (1, 2, 4, 8)
"""Above 1 only when asked for: on accelerators it needs Transformer Engine."""
RECOMPUTES = ("none", "full")
"""`selective` computes attention again, which flash attention does anyway: nothing to gain."""
ALIKE = 0.02
"""Of a step's time: the planner cannot tell such layouts apart, so the simplest wins: fewest context ranks, chunks, bytes."""


@dataclass(frozen=True)
class Candidate:
    """A layout, the memory that its fullest stage needs in bytes, and its step."""

    job: Job
    needs_bytes: float
    time: StepTime

    def __str__(self) -> str:
        recompute = ", recompute full" if self.job.method.recompute == "full" else ""
        return f"{self.job.layout}, micro-batch {self.job.micro_batch_size}{recompute}"


@dataclass(frozen=True)
class Ranking:
    """Those that fit, fastest first; how many do not, and the fastest of them."""

    fitting: tuple[Candidate, ...]
    num_too_large: int
    too_large: Candidate | None


def rank_layouts(
    job: Job, machine: Machine, world_size: int, *, limit_bytes: float, contexts: Sequence[int] = CONTEXTS[:1]
) -> Ranking:
    """Every layout of the job on `world_size` devices of so much memory. Raises LayoutError where none fits."""
    divided = candidates(job, machine, world_size, contexts=contexts)
    found = [Candidate(each, _needs(each), step_time(each, machine)) for each in divided]
    fitting = sorted((each for each in found if each.needs_bytes <= limit_bytes), key=lambda each: each.time.seconds)
    large = sorted((each for each in found if each.needs_bytes > limit_bytes), key=lambda each: each.time.seconds)
    if not fitting:
        if not large:
            raise LayoutError(
                f"no layout divides {world_size} devices, {job.shape.num_layers} layers and a batch of {job.global_batch_size}; "
                "change --nodes or training.global_batch_size"
            )
        least = min(large, key=lambda each: each.needs_bytes)
        raise LayoutError(
            f"no layout fits: the smallest, {least}, needs {least.needs_bytes / 1e9:.1f} GB of {limit_bytes / 1e9:.1f}; "
            "use more nodes"
        )
    alike = [each for each in fitting if each.time.seconds <= fitting[0].time.seconds * (1 + ALIKE)]
    winner = min(alike, key=lambda each: (each.job.layout.context, each.job.layout.virtual_stages, each.needs_bytes))
    fitting.remove(winner)
    return Ranking((winner, *fitting), len(large), large[0] if large else None)


def candidates(job: Job, machine: Machine, world_size: int, *, contexts: Sequence[int]) -> Iterator[Job]:
    """All jobs that divide: tensor within a node, stages and chunks of the layers, context of the sequence, the rest data."""
    shape = job.shape
    for tensor in _divisors(machine.devices_per_node):
        if shape.num_kv_heads % tensor or shape.num_heads % tensor or shape.ffn_hidden_size % tensor:
            continue
        for pipeline in _divisors(shape.num_layers):
            for context in contexts:
                if world_size % (tensor * pipeline * context) or not _cuts(job.sequence_length, tensor, context):
                    continue
                data = world_size // (tensor * pipeline * context)
                yield from _with_batches(job, Layout(tensor, pipeline, data, 1, context))


def why_it_loses(winner: Candidate, other: Candidate) -> str:
    """The terms in which a layout is slower than the winner, the largest first, in seconds of a step."""
    more = {f.name: getattr(other.time, f.name) - getattr(winner.time, f.name) for f in fields(StepTime)}
    worst = sorted((item for item in more.items() if item[1] > ALIKE / 2 * winner.time.seconds), key=lambda item: -item[1])[:2]
    if worst:
        return ", ".join(f"{name} +{seconds:.2f} s" for name, seconds in worst)
    chunks = other.job.layout.virtual_stages, winner.job.layout.virtual_stages
    if chunks[0] > chunks[1]:
        return f"as fast within {ALIKE:.0%}, with {chunks[0]} chunks a stage instead of {chunks[1]}"
    spare = (other.needs_bytes - winner.needs_bytes) / 1e9
    return f"as fast within {ALIKE:.0%}, with {spare:.1f} GB more memory" if spare > 0 else f"as fast within {ALIKE:.0%}"


def _with_batches(job: Job, layout: Layout) -> Iterator[Job]:
    for micro in MICRO_BATCHES:
        if job.global_batch_size % (layout.data * micro):
            continue
        microbatches = job.global_batch_size // (layout.data * micro)
        for virtual in _divisors(job.shape.num_layers // layout.pipeline):
            if virtual > 1 and (layout.pipeline == 1 or microbatches % layout.pipeline):
                continue
            for recompute in RECOMPUTES:
                each = on_layout(replace(job, micro_batch_size=micro), replace(layout, virtual_stages=virtual))
                yield replace(each, method=replace(each.method, recompute=recompute))


def _needs(job: Job) -> float:
    return max(stage.total for stage in memory_of_stages(job))


def _cuts(length: int, tensor: int, context: int) -> bool:
    return (context == 1 or length % (2 * context) == 0) and length // context % tensor == 0


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
