"""Failures, saves, days and disk against published tables."""

import math

import pytest

from megatron_poro.planning.counts import model_flops
from megatron_poro.planning.endurance import (
    best_interval_seconds,
    checkpoints_kept,
    days_at_rate,
    elements,
    endure,
    failure_overhead,
    mtbf_seconds,
)
from tests.planning.jobs import llama

TOKENS = 39_339 * 4_194_304  # 165B


@pytest.mark.parametrize(("nodes", "days", "slow"), [(64, 24.8, 31.0), (128, 13.6, 17.0), (256, 8.0, 10.0), (512, 5.2, 6.5)])
def test_days_of_the_70b_on_lumi_are_the_published_bracket(nodes, days, slow):
    # TP8 x PP8, batch 512: m = 512 / (nodes / 8), plateaus of 75 and 60 TFLOP/s with causal attention
    microbatches = 512 // (nodes // 8)
    settings = {"devices": 8 * nodes, "efficiency": microbatches / (microbatches + 7)}
    flops = model_flops(llama(), 8192).causal
    assert days_at_rate(TOKENS, flops, tflops=75, **settings) == pytest.approx(days, abs=0.06)
    assert days_at_rate(TOKENS, flops, tflops=60, **settings) == pytest.approx(slow, abs=0.06)


@pytest.mark.parametrize(
    ("nodes", "rate", "hours", "minutes"),
    [
        (128, 2.34, 80, (40, 98, 175)),
        (128, 6.5, 28.8, (24, 59, 105)),
        (256, 2.34, 40, (28, 69, 124)),
        (256, 6.5, 14.4, (17, 42, 74)),
    ],
)
def test_intervals_are_youngs_and_dalys(nodes, rate, hours, minutes):
    mtbf = mtbf_seconds(nodes, rate)
    assert mtbf / 3600 == pytest.approx(hours, rel=0.005)
    found = [best_interval_seconds(stall, mtbf) / 60 for stall in (10, 60, 192)]
    assert found == pytest.approx(list(minutes), abs=1)


def test_the_best_interval_wastes_least():
    mtbf = mtbf_seconds(256, 6.5)
    best = best_interval_seconds(60, mtbf)
    waste = [failure_overhead(60, best * factor, mtbf, restart_seconds=0) for factor in (0.5, 0.9, 1, 1.1, 2)]
    assert min(waste) == waste[2] == pytest.approx(0.048, abs=0.001)  # sqrt(2 C / M)


def test_without_failures_nothing_is_lost_but_saves():
    calm = endure(128, 1e12, failures=0, write_rate=24e9, restart_seconds=900, interval=0)
    assert (calm.overhead, calm.best_interval_seconds) == (0, math.inf)
    saving = endure(128, 1e12, failures=0, write_rate=24e9, restart_seconds=900, interval=1000)
    assert saving.overhead == pytest.approx(0.01)


def test_a_save_never_starts_while_another_is_written():
    slow = endure(128, 1e12, failures=5, write_rate=1e8, restart_seconds=900, interval=60)
    assert slow.interval_seconds == 1e4


@pytest.mark.parametrize(
    ("steps", "every", "last", "milestones", "kept"),
    [(39458, 500, 3, 0, 4), (39458, 500, 3, 10000, 7), (39458, 500, 0, 0, 80), (100, 500, 3, 0, 2), (39458, 0, 3, 0, 2)],
)
def test_the_retention_policy_bounds_the_checkpoints(steps, every, last, milestones, kept):
    assert checkpoints_kept(steps, every=every, keep_last=last, keep_every=milestones) == kept


def test_elements_hold_the_days_and_their_starts():
    assert elements(13.6, 2880, start_minutes=15, spare=2) == 9
    assert elements(13.6, 0, start_minutes=15, spare=2) == 0
