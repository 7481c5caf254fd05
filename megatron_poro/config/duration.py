"""How long a run is and how large its steps are, in closed form: steps, samples and tokens as the run file plans them.

Everything that asks where step s stands asks here: the loop, the learning rate, the ledger, the demo. What is planned depends on
the run file alone; what was really read and trained stands in the run's state.
"""

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from math import gcd

from megatron_poro.config.schema import OptimizerConfig, RunConfig, TrainingConfig

_POINT = re.compile(r"(?P<number>[0-9][0-9_]*(?:\.[0-9]+)?(?:e\+?[0-9]{1,2})?)(?P<unit>|steps|tokens)", re.IGNORECASE)


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps of one batch size: the first of them, and how many samples are planned before it."""

    first_step: int
    first_sample: int
    batch_size: int


@dataclass(frozen=True)
class Duration:
    """A run's plan: `num_steps` steps, in stretches of one batch size each. Steps are counted from 0."""

    sequence_length: int
    stretches: tuple[Stretch, ...]
    num_steps: int

    @property
    def num_samples(self) -> int:
        """Samples of the whole run."""
        return self.samples_before(self.num_steps)

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.tokens_before(self.num_steps)

    def batch_size(self, step: int) -> int:
        """Samples of step `step` over all processes."""
        return self._stretch(step, lambda stretch: stretch.first_step).batch_size

    def samples_before(self, step: int) -> int:
        """Samples of all steps before step `step`, which may lie beyond the end of the run."""
        stretch = self._stretch(step, lambda stretch: stretch.first_step)
        return stretch.first_sample + (step - stretch.first_step) * stretch.batch_size

    def tokens_before(self, step: int) -> int:
        """Tokens of all steps before step `step`."""
        return self.samples_before(step) * self.sequence_length

    def step_reaching(self, tokens: int) -> int:
        """The fewest steps that have `tokens` tokens or more."""
        samples = -(-tokens // self.sequence_length)
        stretch = self._stretch(samples, lambda stretch: stretch.first_sample)
        return stretch.first_step - (stretch.first_sample - samples) // stretch.batch_size

    def step_within(self, tokens: int) -> int:
        """The most steps that have `tokens` tokens or fewer."""
        samples = tokens // self.sequence_length
        stretch = self._stretch(samples, lambda stretch: stretch.first_sample)
        return stretch.first_step + (samples - stretch.first_sample) // stretch.batch_size

    @cached_property
    def unit(self) -> int:
        """The largest number of samples that every batch is a multiple of: what the learning rate counts in.

        With one batch size a unit is a step, so the rates of such a run are those of a schedule over steps, to the last bit.
        """
        return gcd(*(stretch.batch_size for stretch in self.stretches))

    def units_before(self, step: int) -> int:
        """Units of all steps before step `step`."""
        return self.samples_before(step) // self.unit

    @property
    def num_units(self) -> int:
        """Units of the whole run."""
        return self.units_before(self.num_steps)

    def _stretch(self, point: int, start: Callable[[Stretch], int]) -> Stretch:
        """The last stretch that starts at `point` or before it."""
        return self.stretches[max(bisect_right(self.stretches, point, key=start) - 1, 0)]


def duration_of(config: RunConfig) -> Duration:
    """The duration of a run file."""
    return plan_duration(config.training, config.data.sequence_length)


def plan_duration(training: TrainingConfig, sequence_length: int) -> Duration:
    """The duration that `training` describes at this many tokens per sample."""
    stretches = [Stretch(0, 0, training.global_batch_size)]
    for ramp in training.batch_ramp:
        before = stretches[-1]
        wanted = -(-ramp.from_tokens // sequence_length) - before.first_sample
        steps = max(-(-wanted // before.batch_size), 0)
        first_sample = before.first_sample + steps * before.batch_size
        stretches.append(Stretch(before.first_step + steps, first_sample, ramp.global_batch_size))
    endless = Duration(sequence_length, tuple(stretches), 0)
    return Duration(sequence_length, tuple(stretches), training.steps or endless.step_reaching(training.tokens))


def warmup_units(duration: Duration, optimizer: OptimizerConfig) -> int:
    """Units at the start of the run in which the learning rate rises."""
    if optimizer.warmup_tokens:
        return duration.units_before(duration.step_reaching(optimizer.warmup_tokens))
    if optimizer.warmup_steps:
        return duration.units_before(optimizer.warmup_steps)
    return round(optimizer.warmup_fraction * duration.num_units)


def decay_units(duration: Duration, optimizer: OptimizerConfig) -> int:
    """Units at the end of the run in which wsd's learning rate falls; more than the run has when the run file asks for that."""
    first_step = duration.num_steps - optimizer.decay_steps
    if optimizer.decay_tokens:
        first_step = duration.step_within(duration.num_tokens - optimizer.decay_tokens)
    if optimizer.decay_tokens or optimizer.decay_steps:
        return duration.num_units - duration.units_before(first_step)
    return round(optimizer.decay_fraction * duration.num_units)


@dataclass(frozen=True)
class RunPoint:
    """A point of a run, as a command line names it: an amount of steps or of tokens."""

    amount: int
    unit: str = "steps"

    def step(self, duration: Duration) -> int:
        """How many steps of the run lie before the point; a step that the tokens end in counts."""
        return duration.step_reaching(self.amount) if self.unit == "tokens" else self.amount


def parse_point(text: str) -> RunPoint:
    """`500`, `500steps`, `1e9tokens`, `2_000_000tokens` as a point. Raises ValueError."""
    match = _POINT.fullmatch(text)
    amount = Decimal(match["number"].replace("_", "")) if match else Decimal(0)
    if not match or amount != amount.to_integral_value():
        raise ValueError(f"{text!r} is no number of steps or tokens; write 500, 500steps or 1e9tokens")
    return RunPoint(int(amount), match["unit"].lower() or "steps")
