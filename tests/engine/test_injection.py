"""PORO_FAULT is read strictly, and each fault happens where and as often as it says."""

import pytest

from megatron_poro.engine.injection import Fault, InjectedError, Injection, parse_faults, read_injection
from megatron_poro.errors import LaunchError


def test_a_fault_is_read() -> None:
    assert parse_faults("kill@rank=1,step=5,phase=forward") == [Fault("kill", 1, "forward", 5, 5)]


def test_several_faults_and_ranges_are_read() -> None:
    faults = parse_faults("nan@rank=0,step=5-7; term@rank=1,step=3,phase=saving,delay=0.5")
    assert faults[0] == Fault("nan", 0, "gradients", 5, 7, times=3)
    assert faults[1] == Fault("term", 1, "saving", 3, 3, delay=0.5)


@pytest.mark.parametrize(
    "text",
    [
        "kill",
        "kill@step=5,phase=forward",
        "kill@rank=1,step=5",
        "kill@rank=1,step=0,phase=forward",
        "kill@rank=1,step=7-5,phase=forward",
        "kill@rank=1,phase=lunch",
        "explode@rank=1,phase=forward",
        "kill@rank=1,phase=forward,colour=red",
        "kill@rank=1,phase=forward,first_step=3",
        "kill@rank=1,phase=forward,factor=3",
        "hang@rank=1,phase=forward,delay=3",
        "nan@rank=1,phase=forward",
        "kill@rank=one,phase=forward",
        "kill@rank=1,phase=",
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(LaunchError, match="PORO_FAULT"):
        parse_faults(text)


def test_without_the_variable_or_on_another_rank_there_is_nothing() -> None:
    assert read_injection({}, 0) is None
    assert read_injection({"PORO_FAULT": "kill@rank=1,phase=data"}, 0) is None


def reached(text: str, steps: range) -> list[tuple[int, int]]:
    """(step, microbatch) at which `raise` faults happen over steps of three microbatches."""
    injection, hits = Injection(parse_faults(text), 0), []
    for step in steps:
        for microbatch in (1, 2, 3):
            for phase in ("forward", "backward"):
                try:
                    injection.reach(phase, step)
                except InjectedError:
                    hits.append((step, microbatch))
    return hits


def test_a_fault_happens_once_at_its_place() -> None:
    assert reached("raise@rank=0,step=2,phase=backward,occurrence=3", range(1, 5)) == [(2, 3)]
    assert reached("raise@rank=0,phase=forward", range(1, 5)) == [(1, 1)]


def test_a_fault_of_several_steps_happens_once_in_each() -> None:
    assert reached("raise@rank=0,step=2-3,phase=forward,occurrence=1", range(1, 5)) == [(2, 1), (3, 1)]
