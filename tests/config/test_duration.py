"""The planned course of a run against a walk through all of its steps."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_poro.config import OptimizerConfig, RampConfig, TrainingConfig
from megatron_poro.config.duration import Duration, RunPoint, decay_units, parse_point, plan_duration, warmup_units

LENGTH = 64


@dataclass(frozen=True)
class Planned:
    training: TrainingConfig

    @property
    def duration(self) -> Duration:
        return plan_duration(self.training, LENGTH)


@st.composite
def runs(draw: st.DrawFn) -> Planned:
    points = sorted(draw(st.sets(st.integers(1, 20_000), max_size=4)))
    ramp = tuple(RampConfig(from_tokens=tokens, global_batch_size=draw(st.integers(1, 12))) for tokens in points)
    steps = draw(st.integers(0, 60))
    tokens = 0 if steps else draw(st.integers(1, 40_000))
    return Planned(TrainingConfig(steps=steps, tokens=tokens, global_batch_size=draw(st.integers(1, 12)), batch_ramp=ramp))


def walk(training: TrainingConfig, num_steps: int) -> list[tuple[int, int]]:
    """Tokens before each step and its batch size, one step after the other."""
    tokens, steps = 0, []
    for _ in range(num_steps):
        sizes = [ramp.global_batch_size for ramp in training.batch_ramp if ramp.from_tokens <= tokens]
        steps.append((tokens, sizes[-1] if sizes else training.global_batch_size))
        tokens += steps[-1][1] * LENGTH
    return steps


@given(runs())
def test_every_step_is_where_a_walk_through_the_run_finds_it(run: Planned) -> None:
    duration = run.duration
    for step, (tokens, size) in enumerate(walk(run.training, duration.num_steps + 3)):
        assert (duration.tokens_before(step), duration.batch_size(step)) == (tokens, size)
        assert duration.samples_before(step) * LENGTH == tokens


@given(runs(), st.integers(0, 60_000))
def test_tokens_are_reached_by_the_first_step_that_has_them(run: Planned, tokens: int) -> None:
    duration = run.duration
    step = duration.step_reaching(tokens)
    assert duration.tokens_before(step) >= tokens
    assert step == 0 or duration.tokens_before(step - 1) < tokens
    within = duration.step_within(tokens)
    assert duration.tokens_before(within) <= tokens < duration.tokens_before(within + 1)


@given(runs())
def test_a_run_of_so_many_tokens_ends_with_the_step_that_reaches_them(run: Planned) -> None:
    if run.training.tokens:
        assert run.duration.tokens_before(run.duration.num_steps - 1) < run.training.tokens <= run.duration.num_tokens


@given(runs())
def test_every_batch_is_whole_units_and_one_batch_size_makes_units_steps(run: Planned) -> None:
    duration = run.duration
    assert duration.num_units * duration.unit == duration.num_samples
    if not run.training.batch_ramp:
        assert duration.num_units == duration.num_steps


def test_warm_up_and_decay_count_alike_in_fractions_steps_and_tokens() -> None:
    duration = plan_duration(TrainingConfig(steps=100, global_batch_size=8), LENGTH)
    batch_tokens = 8 * LENGTH
    for part, value in (("fraction", 0.2), ("steps", 20), ("tokens", 20 * batch_tokens), ("tokens", 19 * batch_tokens + 1)):
        optimizer = OptimizerConfig(learning_rate=1e-3, **{f"warmup_{part}": value, f"decay_{part}": value})  # type: ignore[arg-type]
        assert (warmup_units(duration, optimizer), decay_units(duration, optimizer)) == (20, 20)


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("500", RunPoint(500)),
        ("0", RunPoint(0)),
        ("1_000steps", RunPoint(1000)),
        ("1e9tokens", RunPoint(10**9, "tokens")),
        ("2.5e3tokens", RunPoint(2500, "tokens")),
        ("2_000_000tokens", RunPoint(2_000_000, "tokens")),
    ],
)
def test_a_point_of_a_run_is_steps_or_tokens(text: str, point: RunPoint) -> None:
    assert parse_point(text) == point


@pytest.mark.parametrize("text", ["", "_", "steps", "-1", "1.5", "1e-3tokens", "5 epochs", "nan"])
def test_what_is_no_point_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="500steps"):
        parse_point(text)


def test_a_point_in_tokens_is_the_step_they_end_in() -> None:
    duration = plan_duration(TrainingConfig(steps=100, global_batch_size=8), LENGTH)
    assert RunPoint(1025, "tokens").step(duration) == 3
    assert RunPoint(1024, "tokens").step(duration) == 2
    assert RunPoint(7).step(duration) == 7
