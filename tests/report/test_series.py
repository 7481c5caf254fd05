"""metrics.jsonl as columns: torn lines, steps that were repeated, and thinning that keeps every spike."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_poro.observe import read_metrics
from megatron_poro.report.sampling import smooth, thin
from megatron_poro.report.series import read_history
from tests.report.synthetic import records


def start(step: int, **values: Any) -> dict[str, Any]:
    return {"event": "start", "step": step, "time": float(step), **values}


def trained(*steps: int, loss: float = 1.0) -> list[dict[str, Any]]:
    return [{"event": "step", "step": step, "time": float(step), "loss": loss, "tokens": 10 * step} for step in steps]


def write(path: Path, *written: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in written))
    return path


def test_steps_after_a_later_start_are_taken_back(tmp_path: Path) -> None:
    history = read_history(
        write(tmp_path / "m", start(0), *trained(1, 2, 3), start(1), *trained(2, loss=2.0), start(1, left_out=[8, 15]))
    )
    assert history["train/loss"].steps.tolist() == [1]
    assert [(each.step, each.reached) for each in history.starts] == [(0, 0), (1, 3), (1, 2)]
    assert history.last_step == 1
    assert history.last_tokens == 10


def test_columns_are_what_read_metrics_gives(tmp_path: Path) -> None:
    path = write(tmp_path / "m", *records(12_000, {3: 9.0}, 8))
    steps = [record for record in read_metrics(path) if record["event"] == "step"]
    history = read_history(path)
    assert history["train/loss"].values.tolist() == [record["loss"] for record in steps]
    assert history["train/loss"].steps.tolist() == [record["step"] for record in steps]
    assert history["loss_by_source/fi"].values.tolist() == [record["losses"]["fi"] for record in steps]


def test_torn_and_foreign_lines_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "m", start(0), *trained(1, 2))
    lines = [
        '{"event": "step", "st',
        "[]",
        "null",
        '{"event": 3, "step": 4}',
        '{"event": "step"}',
        '{"event": "step", "step": "5"}',
    ]
    lines += ['{"event": "step", "step": 3e9, "time": 1}', '{"event": "step", "step": 2, "time": 3, "losses": {"fi": null}}']
    path.write_bytes(path.read_bytes() + "\n".join(lines).encode() + b"\n\xff\xfe\n" + json.dumps(trained(3)[0]).encode())
    assert read_history(path)["train/loss"].steps.tolist() == [1, 2, 3]


def test_todays_records_without_the_newer_keys_are_read(tmp_path: Path) -> None:
    history = read_history(write(tmp_path / "m", start(0), *trained(1)))
    assert history["throughput/mfu"].values.tolist() == []
    assert set(history.series) == {"train/loss", "progress/tokens"}


def test_tokens_are_known_at_steps_between_those_written_down(tmp_path: Path) -> None:
    history = read_history(write(tmp_path / "m", start(0), *trained(10, 20)))
    assert history.tokens_at(np.array([0, 5, 10, 15])).tolist() == [0, 50, 100, 150]


@given(st.integers(1, 30_000), st.integers(4, 3000), st.data())
def test_every_planted_spike_survives_thinning(count: int, most: int, data: st.DataObject) -> None:
    values = np.random.Generator(np.random.PCG64(count)).standard_normal(count)
    places = data.draw(st.sets(st.integers(0, count - 1), max_size=3))
    for place, spike in zip(places, (100.0, -200.0, 300.0), strict=False):
        values[place] = spike
    chosen = thin(values, most)
    stretches = max(most // 2 - 1, 1)
    if len({place * stretches // count for place in places}) == len(places):  # two in one stretch hide one of the same sign
        assert places <= set(chosen.tolist())
    assert len(chosen) <= max(most, 4)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert {0, count - 1} <= set(chosen.tolist())


def test_the_greatest_and_the_least_survive_among_what_is_not_finite() -> None:
    values = np.full(10_000, np.nan)
    values[[4000, 7000]] = [5.0, -5.0]
    assert {4000, 7000} <= set(thin(values, 100).tolist())


@given(st.lists(st.floats(-100, 100) | st.just(np.nan), min_size=1, max_size=50), st.integers(1, 20))
def test_a_mean_is_that_of_the_finite_values_around(values: list[float], window: int) -> None:
    padded = np.array(values)
    for place, mean in enumerate(smooth(padded, window)):
        end = place + window // 2 + 1
        around = padded[max(end - window, 0) : end]
        around = around[np.isfinite(around)]
        expected = np.mean(around) if len(around) else np.nan
        assert mean == pytest.approx(expected, abs=1e-9, nan_ok=True)  # sums of 20 numbers up to 100, in another order


def test_a_mean_behind_a_huge_spike_is_right() -> None:
    values = np.full(1000, 2.0)
    values[100] = 1e20
    assert smooth(values, 10)[200:].tolist() == [2.0] * 800
