"""A pipeline schedule, played through: when each stage computes what, 1F1B and interleaved, with unequal and slow stages.

The orders are megatron-core's (pipeline_parallel/schedules.py): a stage warms up with forward passes, then turns forward and
backward until the forwards are done, then cools down. Where stages are equal the idle share is Narayanan's closed form.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_poro.errors import LayoutError


@dataclass(frozen=True)
class Pass:
    """One chunk's forward or backward pass of a microbatch on a stage; times in seconds from the step's start."""

    stage: int
    chunk: int
    microbatch: int
    is_forward: bool
    start: float = 0.0
    end: float = 0.0


@dataclass(frozen=True)
class Stages:
    """What is played: seconds of one chunk's forward and backward pass on each stage, and of sending a boundary.

    With blocking sends (1F1B in megatron-core) every pass waits for one; overlapped ones only delay the receiver.
    """

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    virtual: int = 1
    send: float = 0.0

    @property
    def count(self) -> int:
        """Pipeline stages."""
        return len(self.forward)


@dataclass(frozen=True)
class Timeline:
    """The passes in the order of their start, and when the last one ends."""

    passes: tuple[Pass, ...]
    seconds: float

    def busy(self, stage: int) -> float:
        """Seconds that a stage computes."""
        return sum(each.end - each.start for each in self.passes if each.stage == stage)

    @property
    def bubble(self) -> float:
        """Idle time of the busiest stage over its busy time: (p - 1) / (v m) where stages are equal."""
        busiest = max(self.busy(stage) for stage in {each.stage for each in self.passes})
        return self.seconds / busiest - 1


def simulate(stages: Stages, microbatches: int) -> Timeline:
    """Play `microbatches` through the stages. Raises LayoutError where the interleaved schedule cannot divide them."""
    if stages.virtual > 1 and microbatches % stages.count:
        raise LayoutError(f"{microbatches} microbatches do not divide into the {stages.count} stages of an interleaved schedule")
    orders = [stage_order(stage, stages.count, stages.virtual, microbatches) for stage in range(stages.count)]
    ends: dict[tuple[bool, int, int], float] = {}
    clocks, positions = [0.0] * stages.count, [0] * stages.count
    passes: list[Pass] = []
    waiting = set(range(stages.count))
    while waiting:
        before = len(passes)
        for stage in sorted(waiting):
            order = orders[stage]
            while positions[stage] < len(order):
                ready = _ready(order[positions[stage]], stages, ends)
                if ready is None:
                    break
                done = _play(order[positions[stage]], max(ready, clocks[stage]), stages)
                virtual = done.chunk * stages.count + stage
                ends[done.is_forward, virtual, done.microbatch] = clocks[stage] = done.end
                passes.append(done)
                positions[stage] += 1
            if positions[stage] == len(order):
                waiting.discard(stage)
        if len(passes) == before:
            raise RuntimeError("the schedule waits for itself")
    return Timeline(tuple(sorted(passes, key=lambda each: each.start)), max(clocks))


def stage_order(stage: int, count: int, virtual: int, microbatches: int) -> list[Pass]:
    """What a stage does one after the other: megatron-core's warm-up, steady state and cool-down."""
    total = microbatches * virtual
    warmup = min(total, count - stage - 1 if virtual == 1 else 2 * (count - stage - 1) + (virtual - 1) * count)
    forwards = [_pass(stage, number, count, virtual=virtual, is_forward=True) for number in range(total)]
    backwards = [_pass(stage, number, count, virtual=virtual, is_forward=False) for number in range(total)]
    order = forwards[:warmup]
    for number in range(total - warmup):
        order += [forwards[warmup + number], backwards[number]]
    return order + backwards[total - warmup :]


def bubble_share(count: int, virtual: int, microbatches: int) -> float:
    """Idle over computing time of equal stages: (p - 1) / (v m). Source: Narayanan et al. 2021, arXiv 2104.04473, 2.2."""
    return (count - 1) / (virtual * microbatches)


def _pass(stage: int, number: int, count: int, *, virtual: int, is_forward: bool) -> Pass:
    """The `number`-th pass of a stage: groups of `count` microbatches go through chunk after chunk, backwards the other way."""
    group, place = divmod(number, count * virtual)
    chunk, within = divmod(place, count)
    if virtual == 1:
        return Pass(stage, 0, number, is_forward)
    return Pass(stage, chunk if is_forward else virtual - 1 - chunk, group * count + within, is_forward)


def _ready(each: Pass, stages: Stages, ends: dict[tuple[bool, int, int], float]) -> float | None:
    """When what a pass needs is there; None while that is not known."""
    virtual, last = each.chunk * stages.count + each.stage, stages.count * stages.virtual - 1
    delay = stages.send if stages.virtual > 1 else 0.0
    if each.is_forward:
        before = ends.get((True, virtual - 1, each.microbatch)) if virtual else 0.0
        return None if before is None else before + (delay if virtual else 0.0)
    own = ends.get((True, virtual, each.microbatch))
    after = ends.get((False, virtual + 1, each.microbatch)) if virtual < last else own
    if own is None or after is None:
        return None
    return max(own, after + (delay if virtual < last else 0.0))


def _play(each: Pass, start: float, stages: Stages) -> Pass:
    seconds = (stages.forward if each.is_forward else stages.backward)[each.stage]
    if stages.virtual == 1 and stages.count > 1:
        seconds += stages.send
    return Pass(each.stage, each.chunk, each.microbatch, each.is_forward, start, start + seconds)


def slowed(stages: Stages, stage: int, factor: float) -> Stages:
    """The same with one stage `factor` times slower: a straggler."""

    def stretch(seconds: Sequence[float]) -> tuple[float, ...]:
        return tuple(value * (factor if place == stage else 1.0) for place, value in enumerate(seconds))

    return Stages(stretch(stages.forward), stretch(stages.backward), stages.virtual, stages.send)
