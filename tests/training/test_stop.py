"""A signal to the launcher saves the run at the end of the step; the same command goes on with the uninterrupted losses."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from megatron_poro.engine.paths import list_checkpoints, read_state
from tests.runs import RUN, command, losses_of, poro, write_run

STOPPED = 75


def run_file(folder: Path, inputs: Path) -> Path:
    folder.mkdir(exist_ok=True)
    sources = [{**source, "path": str(inputs / source["name"])} for source in RUN["data"]["sources"]]
    changes = {
        "parallel": {"pipeline": 2},
        "data": {"sources": sources},
        "training": {"steps": 40},
        "checkpoint": {"initial": str(inputs / "start"), "save_every_steps": 0},
    }
    return write_run(folder / "run.toml", changes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_ends_the_run(number: signal.Signals, inputs: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path, inputs)
    launcher = subprocess.Popen(command("train", path), stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.is_file() and losses_of(tmp_path / "run")) and time.monotonic() < deadline:
        time.sleep(0.01)
    launcher.send_signal(number)
    said, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == STOPPED
    assert f"stopped by {signal.Signals(number).name} at step" in said
    (saved,) = list_checkpoints(tmp_path / "run")
    assert 1 <= read_state(saved)["step"] < 40
    if number == signal.SIGTERM:
        poro("train", path)
        poro("train", run_file(tmp_path / "straight", inputs))
        assert losses_of(tmp_path / "run") == losses_of(tmp_path / "straight" / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_the_ranks_have_loaded_anything_is_not_lost(number: signal.Signals, inputs: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path, inputs)
    launcher = subprocess.Popen(command("train", path), stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    assert launcher.stdout.readline().startswith("starting 2 processes")
    launcher.send_signal(number)
    launcher.stdout.read()
    assert launcher.wait(120) == STOPPED
    assert [read_state(saved)["step"] for saved in list_checkpoints(tmp_path / "run")] in ([1], [])
