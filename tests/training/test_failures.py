"""One rank fails: it speaks first, the others end within seconds and blame nobody else, also when torchrun or srun starts them."""

import signal
import socket
import time
from pathlib import Path

import pytest

from megatron_poro.errors import HANG_CODE, STOPPED_CODE
from megatron_poro.training.failures import Start, lost_a_peer, read_failure, report_failure, wait_for_failure
from tests.runs import RUN, losses_of, poro
from tests.training.guarded import assert_gone, events, finish, pids_of, run_file, start


def torchrun(path: Path, rank: int, fault: str = "", **environment: str):
    """One of two processes as torchrun would start it."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    return start(path, fault, **place, **environment)


@pytest.fixture
def port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_the_rank_that_raises_speaks_first_and_the_others_blame_it(inputs: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path, inputs, parallel={"tensor": 2})
    said = finish(start(path, "raise@rank=1,step=3,phase=backward"), 1).splitlines()
    said = [line for line in said if line.startswith("error")]
    host = socket.gethostname()
    assert said[0] == f"error: rank 1 on {host}: Traceback (most recent call last):"
    assert sum("Traceback" in line for line in said) == 1
    assert any("InjectedError: a fault on purpose" in line for line in said)
    for line in (line for line in said if line.startswith(f"error: rank 0 on {host}")):
        assert f"ends because rank 1 on {host} failed" in line
    (event,) = events(tmp_path / "run", "failed")
    assert (event["rank"], event["kind"], event["code"]) == (1, "bug", 1)
    assert_gone(pids_of(tmp_path / "run"))


def test_a_mistake_of_the_user_is_said_once(inputs: Path, tmp_path: Path, port: str) -> None:
    start_from = {"initial": str(inputs / "start"), "save_every_steps": 0}
    model = {"model": {**RUN["model"], "norm_epsilon": 0.5}}  # seen by the ranks, when they load
    path = run_file(tmp_path, inputs, parallel={"tensor": 2}, checkpoint=start_from, **model)
    said = [finish(process, 2) for process in [torchrun(path, rank, MASTER_PORT=port) for rank in (0, 1)]]
    assert "".join(said).count("model.norm_epsilon") == 1


@pytest.mark.parametrize("fault", ["raise@rank=0,step=5,phase=forward", "kill@rank=1,step=5,phase=optimizer"])
def test_under_torchrun_the_survivors_end_by_the_marker_and_the_run_goes_on(
    fault: str, inputs: Path, tmp_path: Path, port: str
) -> None:
    path, run = run_file(tmp_path, inputs, parallel={"tensor": 2}), tmp_path / "run"
    code = 1 if fault.startswith("raise") else 128 + signal.SIGKILL
    ranks = [torchrun(path, rank, fault, MASTER_PORT=port) for rank in (0, 1)]
    said = [finish(process, code) for process in ranks]
    victim = int(fault[fault.index("rank=") + 5])
    assert f"rank {victim} on" in said[victim]
    assert "Traceback" not in said[1 - victim]
    assert_gone(pids_of(run))
    for process in [torchrun(path, rank, MASTER_PORT=port) for rank in (0, 1)]:  # the old marker does not end the new start
        finish(process, 0)
    assert sorted(losses_of(run)) == list(range(1, 13))


def test_under_torchrun_a_signal_to_one_supervisor_saves_and_ends_all(inputs: Path, tmp_path: Path, port: str) -> None:
    path, run = run_file(tmp_path, inputs, parallel={"tensor": 2}, training={"steps": 400}), tmp_path / "run"
    ranks = [torchrun(path, rank, MASTER_PORT=port) for rank in (0, 1)]
    deadline = time.monotonic() + 120
    while not ((run / "metrics.jsonl").is_file() and losses_of(run)) and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks[1].send_signal(signal.SIGUSR1)
    for process in ranks:
        finish(process, STOPPED_CODE)
    assert list((run / "checkpoints").glob("step_*"))


def test_under_torchrun_a_hang_on_one_node_is_told_with_the_others_heartbeats(inputs: Path, tmp_path: Path, port: str) -> None:
    patience = {"hang_factor": 5.0, "hang_least_seconds": 4.0}
    path, run = run_file(tmp_path, inputs, parallel={"pipeline": 2}, faults=patience), tmp_path / "run"
    fault = "hang@rank=1,step=4,phase=forward,occurrence=2"
    said = [finish(process, HANG_CODE) for process in [torchrun(path, rank, fault, MASTER_PORT=port) for rank in (0, 1)]]
    assert sum("Behind" in one for one in said) == 1
    (event,) = events(run, "hang")
    assert event["behind"] == [1]
    assert event["missing"] == []
    for rank in (0, 1):
        assert "most recent call first" in (Path(event["stacks"]) / f"rank_{rank:05d}.txt").read_text()
    assert_gone(pids_of(run))


def test_when_a_whole_node_goes_the_survivors_say_so_and_end(inputs: Path, tmp_path: Path, port: str) -> None:
    path, run = run_file(tmp_path, inputs, parallel={"tensor": 2}, training={"steps": 400}), tmp_path / "run"
    ranks = [torchrun(path, rank, MASTER_PORT=port) for rank in (0, 1)]
    deadline = time.monotonic() + 120
    while not ((run / "metrics.jsonl").is_file() and losses_of(run)) and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks[1].kill()  # its rank dies with it, and nobody is left to say why
    said = finish(ranks[0], 1)
    ranks[1].communicate()
    assert "rank 0 on" in said
    assert "a node may be gone" in said
    assert_gone(pids_of(run))


def test_killing_a_supervisor_kills_its_rank(inputs: Path, tmp_path: Path) -> None:
    process = start(run_file(tmp_path, inputs), "kill@rank=0,step=400,phase=data")
    run = tmp_path / "run"
    deadline = time.monotonic() + 120
    while not pids_of(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert_gone(pids_of(run))
    poro("train", tmp_path / "run.toml")


def test_the_first_failure_counts_and_an_earlier_starts_does_not(tmp_path: Path) -> None:
    then = Start("same", False, time.time() - 100, str(tmp_path))
    first = report_failure(then, "bug", 3, 1, "first")
    assert report_failure(then, "bug", 4, 1, "second") == first
    assert wait_for_failure(then, 0.0) == first
    now = Start("same", False, time.time() + 100, str(tmp_path))
    assert read_failure(now) is None
    assert report_failure(now, "signal", 5, 137, "third").rank == 5
    assert read_failure(Start("same", True, time.time() + 1e6, str(tmp_path))) is not None


def test_what_a_lost_peer_looks_like() -> None:
    closed = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:13209")
    outer = ValueError("could not be saved")
    outer.__cause__ = closed
    assert lost_a_peer(closed)
    assert lost_a_peer(outer)
    assert not lost_a_peer(RuntimeError("ProcessGroupGloo::allgather: invalid tensor size"))
    assert not lost_a_peer(RuntimeError("shape mismatch"))
    assert not lost_a_peer(None)
