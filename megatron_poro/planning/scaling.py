"""More devices for the same model: strong scaling (the batch stays), weak scaling (it grows), and where the losses come from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from megatron_poro.errors import LayoutError
from megatron_poro.planning.job import Job
from megatron_poro.planning.machine import Machine
from megatron_poro.planning.times import StepTime, step_time

WORTH = 0.5
"""Twice the devices should gain at least this share of what they would at best; below, most of the added hours are lost."""


@dataclass(frozen=True)
class Point:
    """A number of devices: the job there and its step; `efficiency` is tokens per second and device against the first point."""

    devices: int
    job: Job
    time: StepTime
    efficiency: float

    @property
    def tokens_per_second(self) -> float:
        """Of all devices."""
        return self.job.step_tokens / self.time.seconds

    @property
    def losses(self) -> dict[str, float]:
        """Shares of the step that are not computing."""
        time, seconds = self.time, self.time.seconds
        return {
            "bubble": time.bubble / seconds,
            "imbalance": time.imbalance / seconds,
            "tensor": (time.tensor + time.context) / seconds,
            "pipeline": time.pipeline / seconds,
            "data": time.data / seconds,
            "fixed": (time.fixed + time.update) / seconds,
        }


def strong_scaling(job: Job, machine: Machine, span: tuple[int, int]) -> list[Point]:
    """Doublings of the devices from `span`'s first to its last number, with the batch as it is, as far as it divides."""
    return _points(((job, count) for count in _doublings(span)), machine)


def weak_scaling(job: Job, machine: Machine, span: tuple[int, int]) -> list[Point]:
    """The same with as many microbatches on every copy of the model as the job has: the batch grows with the devices."""
    share = job.num_microbatches * job.micro_batch_size
    model = job.layout.world_size // job.layout.data
    grown = ((replace(job, global_batch_size=share * max(1, count // model)), count) for count in _doublings(span))
    return _points(grown, machine)


def pays_until(points: list[Point]) -> Point:
    """The last point whose doubling still sped the run up by at least 1 + WORTH."""
    best = points[0]
    for before, after in pairwise(points):
        gain = after.tokens_per_second / before.tokens_per_second
        if gain < 1 + WORTH * (after.devices / before.devices - 1):
            break
        best = after
    return best


def parse_span(text: str) -> tuple[int, int]:
    """`64..4096`. Raises LayoutError for anything else."""
    first, dots, last = text.partition("..")
    if not (dots and first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
        raise LayoutError(f"--scale: {text!r} is not FIRST..LAST, numbers of devices as 64..4096")
    return int(first), int(last)


def _points(pairs: Iterable[tuple[Job, int]], machine: Machine) -> list[Point]:
    """Those that divide. Raises LayoutError where none does."""
    found: list[Point] = []
    for job, devices in pairs:
        data, rest = divmod(devices, job.layout.world_size // job.layout.data)
        on = replace(job, layout=replace(job.layout, data=max(data, 1)))
        if rest or not data or job.global_batch_size % (data * job.micro_batch_size):
            continue
        if on.layout.virtual_stages > 1 and on.num_microbatches % on.layout.pipeline:
            continue
        time = step_time(on, machine)
        rate = on.step_tokens / time.seconds / devices
        first = found[0].tokens_per_second / found[0].devices if found else rate
        found.append(Point(devices, on, time, rate / first))
    if not found:
        raise LayoutError("--scale: the layout and the batch divide none of these numbers of devices; choose others")
    return found


def _doublings(span: tuple[int, int]) -> Iterator[int]:
    count = span[0]
    while count <= span[1]:
        yield count
        count *= 2
