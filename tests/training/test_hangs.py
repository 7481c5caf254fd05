"""A rank that hangs or is stopped: the right one is named with its phase, all stacks are kept, and the run ends and goes on."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from megatron_poro.engine.heartbeat import PREFIX
from megatron_poro.errors import HANG_CODE
from tests.runs import losses_of, poro
from tests.training.guarded import assert_gone, events, finish, pids_of, run_file, start

IMPATIENT = {"hang_factor": 5.0, "hang_least_seconds": 4.0, "hang_other_seconds": 60.0}


def heartbeat_directories(run: Path) -> list[Path]:
    """Those of this run; other runs on this machine have theirs."""
    return [path.parent for path in Path("/dev/shm").glob(f"{PREFIX}*/start.json") if str(run) in path.read_text()]


@pytest.fixture(scope="module")
def uninterrupted(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    poro("train", run_file(folder, inputs, parallel={"tensor": 2}))
    return folder / "run"


def test_a_hanging_rank_is_named_with_its_stacks_and_the_run_goes_on(inputs: Path, tmp_path: Path, uninterrupted: Path) -> None:
    path, run = run_file(tmp_path, inputs, parallel={"tensor": 2}, faults=IMPATIENT), tmp_path / "run"
    said = finish(start(path, "hang@rank=1,step=6,phase=backward,occurrence=3"), HANG_CODE)
    assert "rank 1 on" in said
    assert "step 6, backward, microbatch 3" in said
    assert "rank 0 on" not in said.partition("Behind")[2]
    (event,) = events(run, "hang")
    assert event["behind"] == [1]
    stacks = Path(event["stacks"])
    assert "in hang" in (stacks / "rank_00001.txt").read_text()
    assert "in train_step" in (stacks / "rank_00000.txt").read_text()
    assert [rank["rank"] for rank in json.loads((stacks / "hang.json").read_text())["ranks"]] == [0, 1]
    assert_gone(pids_of(run))
    assert heartbeat_directories(run) == []
    poro("train", path)
    assert losses_of(run) == losses_of(uninterrupted)


def test_a_stopped_rank_has_no_stacks_and_the_report_says_why(inputs: Path, tmp_path: Path) -> None:
    path, run = run_file(tmp_path, inputs, parallel={"pipeline": 2}, faults=IMPATIENT), tmp_path / "run"
    said = finish(start(path, "stop@rank=0,step=3,phase=optimizer"), HANG_CODE)
    assert "rank 0 on" in said
    assert "step 3, optimizer" in said
    assert "stopped (SIGSTOP)" in said
    (event,) = events(run, "hang")
    assert event["behind"] == [0]
    assert "SIGSTOP" in (Path(event["stacks"]) / "rank_00000.txt").read_text()
    assert_gone(pids_of(run))


def test_a_single_process_that_hangs_before_its_first_step_ends_too(inputs: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path, inputs, faults={**IMPATIENT, "hang_other_seconds": 5.0})
    said = finish(start(path, "hang@rank=0,phase=start-up"), HANG_CODE)
    assert "rank 0 on" in said
    assert "start-up" in said


def test_stacks_can_be_asked_for_and_the_run_goes_on(inputs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(run_file(tmp_path, inputs, training={"steps": 40}))
    deadline = time.monotonic() + 120
    while not ((run / "metrics.jsonl").is_file() and losses_of(run)) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGQUIT)
    said = finish(process, 0)
    (stacks,) = run.glob("stacks/*/rank_00000.txt")
    assert "in train\n" in stacks.read_text()
    assert str(stacks.parent) in said


def test_factor_0_never_ends_a_run(inputs: Path, tmp_path: Path) -> None:
    faults = {"hang_factor": 0.0, "hang_least_seconds": 1.0, "hang_other_seconds": 1.0}
    process = start(run_file(tmp_path, inputs, faults=faults), "stop@rank=0,step=2,phase=forward")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(15)
    pids = pids_of(tmp_path / "run")
    process.kill()
    process.communicate()
    assert_gone(pids)
