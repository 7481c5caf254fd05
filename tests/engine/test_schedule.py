import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_poro.config import OptimizerConfig
from megatron_poro.engine.schedule import learning_rate


def optimizer(schedule: str = "cosine", warmup: float = 0.05, final: float = 1e-8) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=3e-4, final_learning_rate=final, schedule=schedule, warmup_fraction=warmup)


def test_the_poro_2_schedule_warms_up_peaks_and_ends_at_the_final_rate() -> None:
    steps = 39458
    warmup = round(0.05 * steps)
    assert learning_rate(0, steps, optimizer()) == pytest.approx(3e-4 / warmup)
    assert learning_rate(warmup - 1, steps, optimizer()) == 3e-4
    assert learning_rate(steps - 1, steps, optimizer()) == pytest.approx(1e-8)


def test_half_way_after_the_warm_up_cosine_and_linear_are_at_the_middle() -> None:
    for schedule in ("cosine", "linear"):
        assert learning_rate(49, 100, optimizer(schedule, warmup=0.0, final=0.0)) == pytest.approx(1.5e-4)


@given(st.sampled_from(("cosine", "linear", "constant")), st.integers(1, 500), st.floats(0, 0.5), st.data())
def test_the_rate_stays_between_its_bounds_and_falls_after_the_warm_up(
    schedule: str, steps: int, warmup: float, data: st.DataObject
) -> None:
    config = optimizer(schedule, warmup)
    step = data.draw(st.integers(0, steps - 1))
    rate = learning_rate(step, steps, config)
    assert 0 < rate <= 3e-4
    if round(warmup * steps) <= step < steps - 1:
        assert learning_rate(step + 1, steps, config) <= rate
