"""`kill -9` at any moment, then the same command again: the losses are bit-equal to those of a run that was never killed."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.runs import RUN, command, ledger_of, losses_of, poro, write_run

LAST = Path("checkpoints") / "step_00000012"
PATIENCE_SECONDS = 120


@pytest.fixture(scope="module")
def uninterrupted(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    poro("train", run_file(folder, inputs))
    return folder / "run"


def run_file(folder: Path, inputs: Path) -> Path:
    sources = [{**source, "path": str(inputs / source["name"])} for source in RUN["data"]["sources"]]
    changes = {"parallel": {"tensor": 2}, "data": {"sources": sources}, "checkpoint": {"initial": str(inputs / "start")}}
    return write_run(folder / "run.toml", changes)


def has_step(number: int) -> Callable[[Path], bool]:
    return lambda run: (run / "metrics.jsonl").is_file() and max(losses_of(run), default=0) >= number


def is_saving(run: Path) -> bool:
    return any((run / "checkpoints").glob("partial-step_*/*"))


def kill_when(condition: Callable[[Path], bool], victim: str, folder: Path, inputs: Path) -> None:
    """Start the run and kill -9 the victim once the condition holds; every process of the run must end by itself."""
    launcher = subprocess.Popen(command("train", run_file(folder, inputs)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition(folder / "run"):
        assert launcher.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    ranks = psutil.Process(launcher.pid).children()
    assert len(ranks) == 2
    target = {"launcher": launcher.pid, "first rank": ranks[0].pid, "last rank": ranks[1].pid}[victim]
    os.kill(target, signal.SIGKILL)
    assert launcher.wait(PATIENCE_SECONDS) != 0
    _, alive = psutil.wait_procs(ranks, timeout=PATIENCE_SECONDS)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("condition", "victim"),
    [
        pytest.param(has_step(6), "last rank", id="a rank in training"),
        pytest.param(has_step(2), "launcher", id="the launcher before the first checkpoint"),
        pytest.param(is_saving, "first rank", id="the first rank while saving"),
        pytest.param(is_saving, "last rank", id="another rank while saving"),
    ],
)
def test_the_same_command_again_gives_the_uninterrupted_run(
    condition: Callable[[Path], bool], victim: str, inputs: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    kill_when(condition, victim, tmp_path, inputs)
    poro("train", tmp_path / "run.toml")
    assert losses_of(tmp_path / "run") == losses_of(uninterrupted)
    assert len(losses_of(uninterrupted)) == 12
    assert ledger_of(tmp_path / "run" / LAST) == ledger_of(uninterrupted / LAST)
    assert not list((tmp_path / "run" / "checkpoints").glob("partial-*"))
