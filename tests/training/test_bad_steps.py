"""Bad steps are left out, and after several in a row the run goes back and reads on behind them; a kill changes none of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_poro.config import FaultsConfig, load_run
from megatron_poro.data import TrainingData, Windows
from megatron_poro.engine.paths import list_checkpoints, read_state
from megatron_poro.observe import read_metrics
from megatron_poro.training.monitor import StepMonitor
from tests.runs import RUN, losses_of, poro, write_run

FAULTS = {"rollback_after": 3, "spike_deviations": 0.0}


def run_file(folder: Path, inputs: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    sources = [{**source, "path": str(inputs / source["name"])} for source in RUN["data"]["sources"]]
    changes = {"faults": FAULTS, "data": {"sources": sources}, **changes}
    return write_run(folder / "run.toml", {"checkpoint": {"initial": str(inputs / "start")}, **changes})


def records_of(run: Path, event: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(run / "metrics.jsonl") if record["event"] == event]


def test_a_value_beyond_the_deviations_or_not_finite_is_bad_and_does_not_join_the_window() -> None:
    monitor = StepMonitor(FaultsConfig(spike_deviations=4.0, spike_window=50))
    rng = np.random.default_rng(0)
    usual = [(2.0 + 0.1 * a, 1.0 + 0.1 * b) for a, b in np.clip(rng.standard_normal((50, 2)), -2, 2).tolist()]
    assert not any(monitor.judge(*values, position=n) for n, values in enumerate(usual))
    losses = np.array(usual)[:, 0]
    limit = losses.mean() + 4.0 * losses.std(ddof=1)
    assert "loss" in monitor.judge(float(limit) + 1e-6, 1.0, position=50)
    assert "gradient norm" in monitor.judge(2.0, 9.0, position=60)
    assert "nan" in monitor.judge(float("nan"), 1.0, position=70)
    assert "inf" in monitor.judge(2.0, float("inf"), position=80)
    assert (monitor.bad_steps, monitor.bad_from) == (4, 50)
    again = StepMonitor(FaultsConfig(spike_deviations=4.0, spike_window=50))
    again.restore(json.loads(json.dumps(monitor.as_dict())))
    for judge in (monitor.judge, again.judge):
        assert not judge(float(limit) - 1e-6, 1.0, position=90)
    assert again.as_dict() == monitor.as_dict()
    assert monitor.bad_steps == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_no_number_on_one_rank_leaves_the_step_out_on_all(precision: str, inputs: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path, inputs, parallel={"tensor": 2, "data": 2}, training={"precision": precision})
    done = poro("train", path, PORO_FAULT="nan@rank=1,step=5")
    run = tmp_path / "run"
    assert "step 5 is left out: gradient norm is nan; it had read samples 32-39" in done.stderr
    assert [(r["step"], r["samples"]) for r in records_of(run, "bad_step")] == [(5, [[32, 39]])]
    assert [record["updated"] for record in records_of(run, "step")] == [step != 5 for step in range(1, 13)]
    assert all(np.isfinite(losses_of(run)[step]).all() for step in range(6, 13))
    state = read_state(list_checkpoints(run)[-1])
    assert (state["step"], state["updates"], state["samples"]) == (12, 11, 96)
    noted = json.loads((run / "bad_steps.jsonl").read_text())
    assert [origin["sample"] for origin in noted["origins"]] == list(range(32, 40))


def test_after_several_bad_steps_the_run_goes_back_and_reads_on_behind_them(inputs: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path / "faulty", inputs)
    done = poro("train", path, PORO_FAULT="nan@rank=0,step=6-8")
    run = tmp_path / "faulty" / "run"
    assert "3 bad steps in a row: back to" in done.stderr
    assert json.loads((run / "left_out.json").read_text())["left_out"] == [[40, 64]]
    state = read_state(list_checkpoints(run)[-1])
    assert (state["step"], state["updates"], state["samples"], state["tokens"]) == (12, 12, 120, 96 * 64)
    assert state["ledger"]["samples"] == 96

    # What was read is what is read from the start by a run that is told of the window.
    told = run_file(tmp_path / "told", inputs)
    (tmp_path / "told" / "run").mkdir()
    (tmp_path / "told" / "run" / "left_out.json").write_text((run / "left_out.json").read_text())
    poro("train", told)
    assert losses_of(run) == losses_of(tmp_path / "told" / "run")
    data = TrainingData(load_run(path).data)
    sources = data.order.locate(0, 120).sources
    counts = np.bincount(np.concatenate([sources[:40], sources[64:]]), minlength=2)
    assert [source["samples"] for source in state["ledger"]["sources"]] == counts.tolist()
    data.close()


def test_a_kill_after_the_rollback_changes_nothing(inputs: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path / "killed", inputs, parallel={"tensor": 2})
    poro("train", path, code=137, PORO_FAULT="nan@rank=0,step=6-8;kill@rank=1,step=8,phase=loading")
    poro("train", path)
    straight = run_file(tmp_path / "straight", inputs, parallel={"tensor": 2})
    poro("train", straight, PORO_FAULT="nan@rank=0,step=6-8")
    assert losses_of(tmp_path / "killed" / "run") == losses_of(tmp_path / "straight" / "run")


def test_a_stop_amid_bad_steps_keeps_the_checkpoint_to_go_back_to(inputs: Path, tmp_path: Path) -> None:
    fault = "nan@rank=0,step=6-8"
    path = run_file(tmp_path / "stopped", inputs, checkpoint={"initial": str(inputs / "start"), "keep_last": 1})
    poro("train", path, "--stop-after=7", PORO_FAULT=fault)
    assert [read_state(saved)["step"] for saved in list_checkpoints(tmp_path / "stopped" / "run")] == [4, 7]
    poro("train", path, PORO_FAULT="nan@rank=0,step=8")
    straight = run_file(tmp_path / "straight", inputs)
    poro("train", straight, PORO_FAULT=fault)
    assert losses_of(tmp_path / "stopped" / "run") == losses_of(tmp_path / "straight" / "run")
    assert [read_state(saved)["step"] for saved in list_checkpoints(tmp_path / "stopped" / "run")] == [12]


def test_without_a_checkpoint_to_go_back_to_none_is_touched(inputs: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path, inputs, checkpoint={"initial": str(inputs / "start"), "save_every_steps": 0})
    poro("train", path, "--stop-after=2", PORO_FAULT="nan@rank=0,step=1-3")
    assert "no checkpoint before them" in poro("train", path, code=2, PORO_FAULT="nan@rank=0,step=3").stderr
    assert [saved.name for saved in list_checkpoints(tmp_path / "run")] == ["step_00000002"]
    assert [saved.name for saved in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]
    poro("train", path)


def test_a_rollback_that_cannot_be_noted_says_so_and_touches_nothing_that_counts(inputs: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path, inputs)
    blocker = tmp_path / "run" / "left_out.partial"
    blocker.mkdir(parents=True)
    error = poro("train", path, code=74, PORO_FAULT="nan@rank=0,step=6-8").stderr
    assert "left_out.json: Is a directory" in error
    assert "Traceback" not in error
    blocker.rmdir()
    poro("train", path, PORO_FAULT="nan@rank=0,step=6-8")
    assert json.loads((tmp_path / "run" / "left_out.json").read_text())["left_out"] == [[40, 64]]


def test_what_three_rollbacks_do_not_cure_ends_the_run(inputs: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path, inputs)
    error = poro("train", path, code=2, PORO_FAULT="nan@rank=0,step=6-8,times=100").stderr
    assert "went back to step 4 3 times" in error
    assert error.count("bad steps in a row: back to") == 3


def test_a_run_that_leaves_nothing_out_ends_at_the_first_bad_step(inputs: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path, inputs, faults={"skip_bad_steps": False})
    assert "step 3: gradient norm is nan" in poro("train", path, code=2, PORO_FAULT="nan@rank=0,step=3").stderr


def test_windows_leave_out_what_they_hold_and_nothing_else() -> None:
    windows = Windows().with_span(10, 20).with_span(30, 35).with_span(20, 22).with_span(5, 5)
    assert windows.spans == ((10, 22), (30, 35))
    for position in range(50):
        taken = [n for run in windows.take(position, 40) for n in run]
        assert taken == [n for n in range(position, 200) if not (10 <= n < 22 or 30 <= n < 35)][:40]
        assert windows.num_before(position) == sum(10 <= n < 22 or 30 <= n < 35 for n in range(position))
