import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_poro.engine.launch import World, first_host, read_world, start_local

IDLE = "import time; time.sleep(60)"


def test_without_a_launcher_there_is_no_world() -> None:
    assert read_world({"PATH": "/bin"}) is None


def test_torchrun_is_read() -> None:
    world = read_world({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "1234"})
    assert world == World(rank=3, size=8, local_rank=1, address="node7", port=1234)


def test_srun_is_read_and_its_first_node_is_the_meeting_point() -> None:
    environment = {
        "SLURM_PROCID": "9",
        "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_LOCALID": "1",
        "SLURM_JOB_ID": "4001234",
        "SLURM_STEP_NODELIST": "nid[000012-000013]",
    }
    assert read_world(environment) == World(rank=9, size=16, local_rank=1, address="nid000012", port=21234)


def test_a_batch_script_without_srun_is_not_taken_for_a_rank() -> None:
    assert read_world({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}) is None


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [("nid000001", "nid000001"), ("nid[000012-000015,000020],login1", "nid000012"), ("a,b", "a"), ("n[3,5]-ib", "n3-ib")],
)
def test_the_first_host_of_a_node_list(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_ranks_see_their_place_and_a_good_end_is_0(tmp_path: Path) -> None:
    program = f"import os, pathlib; pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).write_text(os.environ['WORLD_SIZE'])"
    assert start_local([sys.executable, "-c", program], 3) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "3", "1": "3", "2": "3"}


def test_when_one_rank_fails_the_others_end_and_its_code_is_given() -> None:
    program = "import os, sys, time; sys.exit(7) if os.environ['RANK'] == '1' else time.sleep(60)"
    assert start_local([sys.executable, "-c", program], 3) == 7


def test_a_killed_rank_gives_128_plus_the_signal(capfd: pytest.CaptureFixture[str]) -> None:
    program = "import os, signal, time; os.kill(os.getpid(), signal.SIGKILL) if os.environ['RANK'] == '1' else time.sleep(60)"
    assert start_local([sys.executable, "-c", program], 2) == 128 + signal.SIGKILL
    assert "rank 1 was ended by SIGKILL" in capfd.readouterr().err


def test_ranks_do_not_outlive_a_killed_launcher(tmp_path: Path) -> None:
    rank = (
        "import os, pathlib, time; from megatron_poro.engine.launch import die_with_parent; die_with_parent(); "
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).write_text(str(os.getpid())); time.sleep(60)"
    )
    launcher = f"import sys; from megatron_poro.engine.launch import start_local; start_local([sys.executable, '-c', {rank!r}], 2)"
    process = subprocess.Popen([sys.executable, "-c", launcher])
    deadline = time.monotonic() + 30
    while len([p for p in tmp_path.iterdir() if p.read_text()]) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    process.kill()
    process.wait()
    assert len(pids) == 2
    while any(_is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_is_running(pid) for pid in pids)


def _is_running(pid: int) -> bool:
    """A zombie that nobody reaps counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_terminating_the_launcher_ends_the_ranks() -> None:
    start = f"start_local([sys.executable, '-c', {IDLE!r}], 2)"
    launcher = f"import sys; from megatron_poro.engine.launch import start_local; sys.exit({start})"
    process = subprocess.Popen([sys.executable, "-c", launcher], env={**os.environ})
    time.sleep(1.0)
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM


FORKING = (
    "import os, pathlib, sys, time\n"
    "from megatron_poro.engine.forking import FORKS, become_ranks\n"
    "loads = pathlib.Path(sys.argv[1], 'loads')\n"
    "if FORKS in os.environ:\n"
    "    become_ranks(lambda: loads.open('a').write('loaded\\n'))\n"
    "rank = os.environ['RANK']\n"
)


def fork(program: str, folder: Path, count: int) -> int:
    return start_local([sys.executable, "-c", FORKING + program, str(folder)], count, forks=True)


def test_forked_ranks_load_once_and_see_their_place(tmp_path: Path) -> None:
    program = "pathlib.Path(sys.argv[1], rank).write_text(f\"{os.environ['WORLD_SIZE']} {os.getppid()} {FORKS in os.environ}\")"
    assert fork(program, tmp_path, 3) == 0
    assert (tmp_path / "loads").read_text() == "loaded\n"
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == [f"3 {os.getpid()} False"] * 3


def test_the_first_forked_rank_alone_has_the_listening_socket(tmp_path: Path) -> None:
    program = (
        "sockets = [fd for fd in os.listdir('/proc/self/fd') if os.path.islink(f'/proc/self/fd/{fd}') "
        "and os.readlink(f'/proc/self/fd/{fd}').startswith('socket')]\n"
        "pathlib.Path(sys.argv[1], rank).write_text(' '.join(sockets) + '|' + os.environ.get('PORO_LISTEN_FD', ''))"
    )
    assert fork(program, tmp_path, 2) == 0
    sockets, named = (tmp_path / "0").read_text().split("|")
    assert named in sockets.split()
    assert named not in (tmp_path / "1").read_text().split("|")[0].split()
    assert (tmp_path / "1").read_text().endswith("|")


def test_forked_ranks_end_with_codes_and_signals_as_others_do(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert fork("sys.exit(7) if rank == '1' else time.sleep(60)", tmp_path, 3) == 7
    assert fork("os.kill(os.getpid(), 9) if rank == '2' else time.sleep(60)", tmp_path, 3) == 128 + signal.SIGKILL
    assert "rank 2 was ended by SIGKILL" in capfd.readouterr().err


def test_what_cannot_be_loaded_ends_the_start_with_its_code(tmp_path: Path) -> None:
    program = "import os, sys\nfrom megatron_poro.engine.forking import become_ranks\nbecome_ranks(lambda: sys.exit(5))"
    assert start_local([sys.executable, "-c", program], 4, forks=True) == 5


@pytest.mark.parametrize("after_seconds", [0.0, 2.0])
def test_forked_ranks_do_not_outlive_a_launcher_that_was_killed_at_any_moment(tmp_path: Path, after_seconds: float) -> None:
    program = (
        FORKING.replace("write('loaded\\n')", "write('loaded\\n') and time.sleep(1)")
        + "from megatron_poro.engine.launch import die_with_parent; die_with_parent()\n"
        "pathlib.Path(sys.argv[1], rank).write_text(str(os.getpid())); time.sleep(60)"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    launcher = f"from megatron_poro.engine.launch import start_local; start_local({words!r}, 3, forks=True)"
    process = subprocess.Popen([sys.executable, "-c", launcher])
    deadline = time.monotonic() + 30
    while not (tmp_path / "loads").exists():
        time.sleep(0.01)
    while after_seconds and len([path for path in tmp_path.iterdir() if path.name != "loads" and path.read_text()]) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    while subprocess.run(["pgrep", "--full", str(tmp_path)], capture_output=True, check=False).returncode == 0:
        assert time.monotonic() < deadline, "a rank lives on"
        time.sleep(0.05)
