"""Which ranks are slow, from what each spent on its own work. Pure functions, no torch.

Seconds of a whole step say nothing: everyone waits for the slowest. Compared are the seconds a rank needs to get its data, those
its process spends in the forward passes, and those its device needs for a fixed amount of matrix products.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megatron_poro.topology import Layout, locate_rank

LEAST_SHARE = 0.01
"""A rank that loses less than this share of a step is not worth a line."""


class Work(NamedTuple):
    """Of one rank, in seconds: data and forward passes of a step, the fixed matrix products, and a whole step."""

    data: float
    forward: float
    products: float
    step: float


MEASURES = ("data", "forward", "products")
WORDS = {"data": "getting data", "forward": "the forward passes", "products": "a fixed amount of matrix products"}


@dataclass(frozen=True)
class Straggler:
    """A rank, what it is slow at, and its seconds beside the median of the ranks that do the same."""

    rank: int
    measure: str
    seconds: float
    median_seconds: float

    def describe(self, name: str) -> str:
        """The warning about it; `name` says rank, host and device."""
        times = f"{self.seconds / self.median_seconds:.2f} times" if self.median_seconds else "more than"
        return (
            f"slow: {name} needs {times} the median for {WORDS[self.measure]} "
            f"({1e3 * self.seconds:.1f} ms, median {1e3 * self.median_seconds:.1f} ms)"
        )


def find_stragglers(work: Sequence[Work], layout: Layout, percent: float) -> list[Straggler]:
    """The ranks that are slower than the median of those with the same work by more than `percent`; 0 names none."""
    if not percent:
        return []
    step = statistics.median_low(one.step for one in work)
    found = []
    for measure, group in _comparable(layout):
        seconds = {rank: float(getattr(work[rank], measure)) for rank in group}
        median = statistics.median_low(seconds.values())  # of two ranks the faster one
        least = 0.0 if measure == "products" else LEAST_SHARE * step
        # Getting data is a small part of a step: what counts is what it costs the step.
        slack = percent / 100 * (step if measure == "data" else median)
        found += [Straggler(rank, measure, value, median) for rank, value in seconds.items() if value - median > max(slack, least)]
    return found


def _comparable(layout: Layout) -> Iterator[tuple[str, list[int]]]:
    """Ranks that do the same: everyone gets data and has the same device; forward passes are those of a pipeline stage."""
    everyone = list(range(layout.world_size))
    yield "data", everyone
    yield "products", everyone
    for stage in range(layout.pipeline):
        yield "forward", [rank for rank in everyone if locate_rank(rank, layout).pipeline == stage]


def summarise(work: Sequence[Work]) -> dict[str, dict[str, float]]:
    """Median, largest value and the rank that has it, of each measure: for the metrics."""
    summary = {}
    for measure in MEASURES:
        values = [float(getattr(one, measure)) for one in work]
        slowest = max(range(len(values)), key=values.__getitem__)
        summary[measure] = {"median_seconds": statistics.median(values), "most_seconds": values[slowest], "rank": slowest}
    return summary
