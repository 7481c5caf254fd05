import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_poro.config import OptimizerConfig, RampConfig, TrainingConfig
from megatron_poro.config.duration import Duration, plan_duration
from megatron_poro.engine.schedule import learning_rate


def optimizer(schedule: str = "cosine", warmup: float = 0.05, final: float = 1e-8, **decay: float | str) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=3e-4,
        final_learning_rate=final,
        schedule=schedule,
        warmup_fraction=warmup,
        **decay,  # type: ignore[arg-type]
    )


def lasting(steps: int, *ramp: tuple[int, int]) -> Duration:
    """A run of batches of 8 samples of 64 tokens, then of each size of `ramp` (tokens, samples)."""
    later = tuple(RampConfig(from_tokens=tokens, global_batch_size=size) for tokens, size in ramp)
    return plan_duration(TrainingConfig(steps=steps, global_batch_size=8, batch_ramp=later), 64)


def rate_over_steps(step: int, num_steps: int, optimizer: OptimizerConfig) -> float:
    """The schedule as it is over steps, without tokens: what runs of one batch size must get to the last bit."""
    peak, final = optimizer.learning_rate, optimizer.final_learning_rate
    warmup = round(optimizer.warmup_fraction * num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step + 1 - warmup) / max(num_steps - warmup, 1)
    if optimizer.schedule == "constant":
        return peak
    if optimizer.schedule == "linear":
        return peak + (final - peak) * progress
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def test_the_poro_2_schedule_warms_up_peaks_and_ends_at_the_final_rate() -> None:
    steps = 39458
    warmup = round(0.05 * steps)
    assert learning_rate(0, lasting(steps), optimizer()) == pytest.approx(3e-4 / warmup)
    assert learning_rate(warmup - 1, lasting(steps), optimizer()) == 3e-4
    assert learning_rate(steps - 1, lasting(steps), optimizer()) == pytest.approx(1e-8)


def test_half_way_after_the_warm_up_cosine_and_linear_are_at_the_middle() -> None:
    for schedule in ("cosine", "linear"):
        assert learning_rate(49, lasting(100), optimizer(schedule, warmup=0.0, final=0.0)) == pytest.approx(1.5e-4)


@given(st.sampled_from(("cosine", "linear", "constant")), st.integers(1, 500), st.floats(0, 0.5), st.data())
def test_with_one_batch_size_the_rate_is_that_over_steps_to_the_last_bit(
    schedule: str, steps: int, warmup: float, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, steps - 1))
    config = optimizer(schedule, warmup)
    assert learning_rate(step, lasting(steps), config) == rate_over_steps(step, steps, config)


@given(
    st.sampled_from(("cosine", "linear", "constant", "wsd")),
    st.sampled_from(("cosine", "linear", "sqrt")),
    st.integers(1, 500),
    st.floats(0, 0.5),
    st.data(),
)
def test_the_rate_stays_between_its_bounds_and_falls_after_the_warm_up(
    schedule: str, shape: str, steps: int, warmup: float, data: st.DataObject
) -> None:
    config = optimizer(schedule, warmup, decay_fraction=0.4, decay_shape=shape)
    duration = lasting(steps)
    step = data.draw(st.integers(0, steps - 1))
    rate = learning_rate(step, duration, config)
    assert 0 < rate <= 3e-4
    if round(warmup * steps) <= step < steps - 1:
        assert learning_rate(step + 1, duration, config) <= rate


@pytest.mark.parametrize(("shape", "half_way"), [("linear", 1.5e-4), ("cosine", 1.5e-4), ("sqrt", 3e-4 * (1 - math.sqrt(0.5)))])
def test_wsd_stays_at_the_peak_and_decays_to_the_final_rate_at_the_end(shape: str, half_way: float) -> None:
    config = optimizer("wsd", warmup=0.1, final=0.0, decay_steps=20, decay_shape=shape)
    rates = [learning_rate(step, lasting(100), config) for step in range(100)]
    assert rates[:10] == pytest.approx([3e-5 * (step + 1) for step in range(10)])
    assert set(rates[10:80]) == {3e-4}
    assert rates[89] == pytest.approx(half_way)
    assert rates[99] == pytest.approx(0.0, abs=1e-12)


def test_a_larger_batch_moves_the_rate_by_its_share_of_the_tokens() -> None:
    # 10 steps of 8 samples, then 5 of 16: as far as 20 steps of 8
    ramped, even = lasting(15, (10 * 8 * 64, 16)), lasting(20)
    config = optimizer(warmup=0.2)
    for step in range(10):
        assert learning_rate(step, ramped, config) == learning_rate(step, even, config)
    for step in range(10, 15):
        assert learning_rate(step, ramped, config) == learning_rate(10 + 2 * (step - 10) + 1, even, config)
