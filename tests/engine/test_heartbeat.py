"""Beats survive the way through the file, and limits follow from step times."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_poro.engine import phases
from megatron_poro.engine.heartbeat import Beat, BeatFile, beat_path, heartbeat_directory, read_beat
from megatron_poro.engine.phases import WINDOW, Limits, Phase, Pulse, limit_in_force

LIMITS = Limits(factor=10.0, least_seconds=120.0, other_seconds=1800.0)


@given(st.integers(0, 2**40), st.sampled_from(Phase), st.floats(0, 1e6), st.floats(0, 1e6))
def test_what_is_written_is_read(step: int, phase: Phase, limit: float, slowest: float) -> None:
    beat = Beat(step, 3, phase, 17, 1.7e9, limit, slowest)
    with heartbeat_directory() as directory:
        BeatFile(beat_path(directory, 12)).write(beat)
        assert read_beat(beat_path(directory, 12)) == (os.getpid(), beat)


def test_before_the_first_beat_there_is_none(tmp_path: Path) -> None:
    assert read_beat(tmp_path / "none") is None
    BeatFile(tmp_path / "empty")
    assert read_beat(tmp_path / "empty") is None


def test_the_directory_is_private_and_goes() -> None:
    with heartbeat_directory() as directory:
        assert directory.stat().st_mode & 0o077 == 0
        (directory / "file").write_text("")
    assert not directory.exists()


def test_what_a_killed_supervisor_left_is_removed_and_what_a_living_one_has_is_not() -> None:
    with heartbeat_directory() as living:
        left = living.with_name(f"{living.name}-left")
        left.mkdir()
        for path in (living, left):
            os.utime(path, (1, 1))
        with heartbeat_directory():
            assert living.exists()
            assert not left.exists()


@pytest.mark.parametrize(
    ("phase", "slowest", "limit"),
    [
        (Phase.FORWARD, 5.0, 120.0),
        (Phase.FORWARD, 30.0, 300.0),
        (Phase.DATA, 0.0, 1800.0),  # nothing is known of steps yet
        (Phase.SAVING, 30.0, 1800.0),
        (Phase.STARTUP, 0.0, 1800.0),
    ],
)
def test_the_limit_follows_from_phase_and_slowest_step(phase: Phase, slowest: float, limit: float) -> None:
    assert limit_in_force(phase, LIMITS, slowest) == limit


def test_factor_0_means_no_limit() -> None:
    assert all(limit_in_force(phase, Limits(0.0, 120.0, 1800.0), 5.0) == 0 for phase in Phase)


@pytest.fixture
def pulse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pulse:
    pulse = Pulse(limits=LIMITS, file=BeatFile(tmp_path / "beat"))
    monkeypatch.setattr(phases, "_pulse", pulse)
    return pulse


def test_limits_are_learnt_from_recent_steps(pulse: Pulse, tmp_path: Path) -> None:
    for step, seconds in enumerate([60.0, *[20.0] * WINDOW], start=1):
        phases.begin_step(step)
        phases.end_step(seconds)
        phases.enter(Phase.OPTIMIZER)
        read = read_beat(tmp_path / "beat")
        assert read is not None
        assert read[1].limit_seconds == (600.0 if step <= WINDOW else 200.0)


def test_microbatches_are_counted_within_a_step(pulse: Pulse, tmp_path: Path) -> None:
    for step in (1, 2):
        phases.begin_step(step)
        for _ in range(3):
            phases.enter(Phase.FORWARD)
            phases.enter(Phase.BACKWARD)
    read = read_beat(tmp_path / "beat")
    assert read is not None
    assert (read[1].step, read[1].microbatch, read[1].phase, read[1].sequence) == (2, 3, Phase.BACKWARD, 14)


def test_without_a_supervisor_nothing_happens() -> None:
    phases.enter(Phase.FORWARD)
