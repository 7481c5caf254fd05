"""Runs as arrays on two nodes of a real Slurm, with everything that ends elements on a cluster."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_poro.engine.paths import list_checkpoints, step_of
from megatron_poro.slurm.records import read_notes
from tests.runs import command, ledger_of, losses_of
from tests.slurm.arrays import launch, num_notes, ranks, run_file, status, step_now, trains_on, wait_until
from tests.slurm.cluster import Slurm

EIGHT = {"tensor": 2, "pipeline": 2, "data": 2}
MINUTE = ("--time", "0:01:00")


@pytest.fixture(autouse=True)
def _empty_queue(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "slurm" in request.fixturenames:
        request.getfixturevalue("slurm").run("scancel", "--user", str(os.getuid()), check=False)


def fill(folder: Path) -> Path:
    """A file that leaves a megabyte: too little for any checkpoint, enough for what the run has to say about that."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        file.truncate(max(file.tell() - (1 << 20), 0))
    return filler


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 60 MB of its own, which a cluster started later sees."""
    if os.getuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60M", "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield folder
    # What a failed test left to be read.
    shutil.copytree(folder, tmp_path / "left", ignore=shutil.ignore_patterns("checkpoints", "filler"), dirs_exist_ok=True)
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def own_slurm(slurm: Slurm, small_disk: Path) -> Iterator[Slurm]:
    """A cluster whose nodes see the small disk. `slurm` says whether there can be one."""
    cluster = Slurm(4)
    yield cluster
    cluster.close()


@pytest.mark.alone
def test_an_array_finishes_the_run_through_everything_that_ends_elements(
    own_slurm: Slurm, small_disk: Path, tmp_path: Path
) -> None:
    slurm = own_slurm
    path = run_file(tmp_path, steps=100, run=str(small_disk / "run"), parallel=EIGHT, observe={"wandb_project": "poro"})
    run = small_disk / "run"
    array = launch(slurm, path, "--elements", "6", "--lead", "0:05", *MINUTE, WANDB_MODE="offline")

    # The time limit: told before it, the run saves and hands over.
    trains_on(slurm, run, after=0)
    wait_until(lambda: num_notes(run, "end"), "the end of the first element")
    assert [record["code"] for record in read_notes(run) if record["event"] == "end"] == [75]

    # A rank is killed; the next element goes on.
    trains_on(slurm, run, after=1)
    os.kill(ranks(run)[5], signal.SIGKILL)
    wait_until(lambda: num_notes(run, "end") == 2, "the end of the element with the killed rank")

    # A rank hangs.
    trains_on(slurm, run, after=2)
    os.kill(ranks(run)[2], signal.SIGSTOP)
    wait_until(lambda: num_notes(run, "end") == 3, "the end of the element with the rank that hangs")
    assert [record["code"] for record in read_notes(run) if record["event"] == "end"] == [75, 137, 70]

    # The disk is full for one save, then a node dies with everything on it: the element is queued again, and others run.
    element = trains_on(slurm, run, after=3)
    filler = fill(small_disk)
    log = run / "slurm" / "logs" / f"run-{element}.log"
    wait_until(lambda: "was not saved" in log.read_text(), "a save that fails")
    filler.unlink()
    saved = step_of(list_checkpoints(run)[-1])
    wait_until(lambda: step_of(list_checkpoints(run)[-1]) > saved, "a save after the one that failed")
    wait_until(lambda: "checkpoint_failed" in (run / "metrics.jsonl").read_text(), "what waited for the disk")
    lost = slurm.run("scontrol", "show", "hostnames", slurm.job(element)["NodeList"]).stdout.split()[1]
    slurm.kill_node(lost)
    slurm.mark_down(lost)

    # A person queues one again, and cancels one.
    slurm.run("scontrol", "requeue", trains_on(slurm, run, after=4))
    slurm.run("scancel", trains_on(slurm, run, after=5))

    wait_until(lambda: status(slurm, run)["state"] == "done", "the end of the run", seconds=300)
    wait_until(lambda: not slurm.run("squeue", "--noheader", "--jobs", array, check=False).stdout, "an empty queue")
    notes = read_notes(run)
    assert any(record["event"] == "exclude" and record["node"] == lost for record in notes)
    assert num_notes(run, "hold") == 0
    assert num_notes(run, "finished") == 1
    parts = [folder.name.rsplit("-", 1)[1] for folder in (run / "wandb").glob("offline-run-*")]
    assert len(parts) >= 6
    assert set(parts) == {(run / "wandb_id").read_text()}  # one run of wandb's, in parts

    straight = run_file(tmp_path / "straight", steps=100, parallel=EIGHT)
    subprocess.run(
        command("train", straight), check=True, timeout=300, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert losses_of(run) == losses_of(tmp_path / "straight" / "run")
    assert ledger_of(list_checkpoints(run)[-1]) == ledger_of(list_checkpoints(tmp_path / "straight" / "run")[-1])


def test_a_run_that_crashes_at_the_same_step_is_held_and_says_of_what(slurm: Slurm, tmp_path: Path) -> None:
    path = run_file(tmp_path, steps=30)
    array = launch(
        slurm, path, "--elements", "6", "--brake", "2", "--time", "0:10:00", PORO_FAULT="raise@rank=1,step=4,phase=forward"
    )
    wait_until(lambda: num_notes(tmp_path / "run", "hold"), "the brake")
    told = status(slurm, tmp_path / "run")
    assert told["state"] == "held"
    assert "2 elements in a row without a new checkpoint" in told["held"]
    assert "rank 1" in told["held"]
    assert "InjectedError" in told["held"]
    assert told["elements_waiting"] == 4
    assert (
        "launched already"
        in slurm.run(*command("launch", path, "--cluster", "test", "--nodes", "2", "--elements", "1", *MINUTE), check=False).stderr
    )
    said = slurm.run(*command("cancel", tmp_path / "run")).stdout
    assert "4 elements cancelled" in said
    wait_until(lambda: not slurm.run("squeue", "--noheader", "--jobs", array, check=False).stdout, "an empty queue")


def test_stop_saves_and_ends_and_the_next_launch_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    path, run = run_file(tmp_path, steps=4000), tmp_path / "run"
    launch(slurm, path, "--elements", "3", "--time", "0:10:00")
    trains_on(slurm, run, after=0)
    assert "2 elements that waited cancelled" in slurm.run(*command("stop", path)).stdout
    wait_until(lambda: num_notes(run, "end"), "the end")
    wait_until(lambda: not slurm.run("squeue", "--noheader").stdout.strip(), "an empty queue")
    step = step_now(run)
    assert step_of(list_checkpoints(run)[-1]) == step < 4000
    assert status(slurm, run)["state"] == "stopped"


@pytest.mark.parametrize("mode", ["--chain", "--requeue"])
def test_where_arrays_are_not_allowed_a_chain_or_a_job_that_queues_itself_does_the_same(
    mode: str, slurm: Slurm, tmp_path: Path
) -> None:
    path, run = run_file(tmp_path, steps=80), tmp_path / "run"
    launch(slurm, path, mode, "--elements", "4", "--time", "0:10:00")
    trains_on(slurm, run, after=0)
    os.kill(ranks(run)[1], signal.SIGKILL)
    wait_until(lambda: status(slurm, run)["state"] == "done", "the end of the run")
    assert status(slurm, run)["restarts"] == 1
    wait_until(lambda: not slurm.run("squeue", "--noheader").stdout.strip(), "an empty queue")


def test_a_bad_node_is_named_and_left_out_before_training_starts(slurm: Slurm, tmp_path: Path) -> None:
    if not shutil.which("nsenter") or slurm.nodes[0].startswith("127."):
        pytest.skip("a node with a full disk of its own needs mount namespaces")
    path, run = run_file(tmp_path, steps=6), tmp_path / "run"
    own = tmp_path / "own.toml"
    own.write_text(
        'base = "test"\n[[environment]]\nname = "TMPDIR"\nvalue = "/var/tmp"\nwhy = "the disk that is looked at"\n'
        "[node_check]\nmin_local_disk_gb = 0.05\nslower_percent = 0.0\n"
    )
    slurm.run(*slurm.inside(slurm.nodes[0]), "mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", "/var/tmp")
    try:
        slurm.run(*command("launch", path, "--cluster", own, "--nodes", "2", "--elements", "2", *MINUTE))
        wait_until(lambda: status(slurm, run)["state"] == "done", "the end of the run")
    finally:
        slurm.run(*slurm.inside(slurm.nodes[0]), "umount", "/var/tmp")
    assert status(slurm, run)["excluded"] == {slurm.nodes[0]: "0.0 GB free on its own disk, less than 0.05"}
    first, last = (record for record in read_notes(run) if record["event"] == "begin")
    assert slurm.nodes[0] in first["nodes"]
    assert slurm.nodes[0] not in last["nodes"]
    assert num_notes(run, "requeue") >= 1  # the next element may begin there before it is kept off


def test_a_controller_that_is_away_for_a_while_costs_nothing(slurm: Slurm, tmp_path: Path) -> None:
    path, run = run_file(tmp_path, steps=80), tmp_path / "run"
    array = launch(slurm, path, "--elements", "2", "--time", "0:10:00")
    trains_on(slurm, run, after=0)
    slurm.stop_controller()
    try:
        assert "run" in slurm.run(*command("status", run)).stdout
        wait_until(lambda: step_now(run) == 80, "the last step")
        time.sleep(3)
    finally:
        slurm.start_controller()
    wait_until(lambda: num_notes(run, "finished"), "the end")
    wait_until(lambda: not slurm.run("squeue", "--noheader", "--jobs", array, check=False).stdout, "an empty queue")
    assert status(slurm, run)["state"] == "done"


def test_a_run_directory_that_was_moved_is_not_trained_under_its_old_name(slurm: Slurm, tmp_path: Path) -> None:
    path, run = run_file(tmp_path, steps=4000), tmp_path / "run"
    launch(slurm, path, "--elements", "2", "--time", "0:10:00")
    trains_on(slurm, run, after=0)
    slurm.run(*command("cancel", run))
    wait_until(lambda: not slurm.run("squeue", "--noheader").stdout.strip(), "an empty queue")
    moved = tmp_path / "moved"
    run.rename(moved)
    assert "launch it again from where it is" in slurm.run(*command("element", "begin", moved / "slurm"), check=False).stderr
    path = run_file(tmp_path, steps=4000, run="moved")
    launch(slurm, path, "--elements", "2", "--time", "0:10:00", "--name", "moved")
    begins = num_notes(moved, "begin")
    trains_on(slurm, moved, after=begins)
    assert [record for record in read_notes(moved) if record["event"] == "begin"][-1]["step"] >= 5
    slurm.run(*command("cancel", moved))


def test_another_run_file_is_refused_the_folder_of_a_run(slurm: Slurm, tmp_path: Path) -> None:
    path, run = run_file(tmp_path, steps=4000), tmp_path / "run"
    launch(slurm, path, "--elements", "2", "--time", "0:10:00")
    trains_on(slurm, run, after=0)
    other = tmp_path / "other.toml"
    other.write_text(path.read_text().replace("learning_rate = 0.003", "learning_rate = 0.002"))
    words = ("--cluster", "test", "--nodes", "2", "--elements", "1", "--time", "0:10:00")
    script = (run / "slurm" / "run.toml").read_bytes()
    said = slurm.run(*command("launch", other, *words), check=False)
    assert said.returncode == 2
    assert "optimizer.learning_rate was 0.003, is 0.002" in said.stderr
    assert (run / "slurm" / "run.toml").read_bytes() == script
    slurm.run(*command("cancel", run))


def test_of_two_launches_at_the_same_moment_one_is_refused(slurm: Slurm, tmp_path: Path) -> None:
    path = run_file(tmp_path, steps=4000)
    words = command("launch", path, "--cluster", "test", "--nodes", "2", "--elements", "2", "--time", "0:10:00")
    both = [subprocess.Popen(words, env=slurm.environment, text=True, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    assert sum("launched already" in each for each in said) == 1
    assert num_notes(tmp_path / "run", "launch") == 1
    slurm.run(*command("cancel", tmp_path / "run"))


def test_locks_that_a_dead_process_left_hold_nothing_up(slurm: Slurm, tmp_path: Path) -> None:
    path, run = run_file(tmp_path, steps=6), tmp_path / "run"
    (run / "slurm").mkdir(parents=True)
    for lock in (run / "lock", run / "slurm" / "lock"):
        holder = subprocess.Popen(["flock", lock, "sleep", "600"], start_new_session=True)
        while not subprocess.run(["flock", "--nonblock", lock, "true"], check=False).returncode:
            time.sleep(0.1)
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()
    launch(slurm, path, "--elements", "1", *MINUTE)
    wait_until(lambda: status(slurm, run)["state"] == "done", "the end of the run")


def test_clocks_that_differ_by_an_hour_change_nothing(slurm: Slurm, tmp_path: Path) -> None:
    skewed = tmp_path / "skewed"
    skewed.mkdir()
    (skewed / "sitecustomize.py").write_text(
        "import os, time\n"
        f"ahead = {{{slurm.nodes[0]!r}: 3600, {slurm.nodes[1]!r}: -3600}}.get(os.environ.get('SLURMD_NODENAME'), 0)\n"
        "real, real_ns = time.time, time.time_ns\n"
        "time.time, time.time_ns = lambda: real() + ahead, lambda: real_ns() + ahead * 10**9\n"
    )
    path, run = run_file(tmp_path, steps=60), tmp_path / "run"
    launch(slurm, path, "--elements", "4", "--time", "0:10:00", PYTHONPATH=f"{skewed}:{os.environ.get('PYTHONPATH', '')}")
    trains_on(slurm, run, after=0)
    os.kill(ranks(run)[1], signal.SIGKILL)
    wait_until(lambda: status(slurm, run)["state"] == "done", "the end of the run")
    told = status(slurm, run)
    assert (told["restarts"], told["held"], told["step"]) == (1, "", 60)
    assert "rank 1" in told["last_failure"]
    assert told["gpu_hours_used"] >= 0
    times = [record["time"] for record in read_notes(run) if record["event"] == "begin"]
    assert any(abs(time.time() - each) > 3000 for each in times)
    straight = run_file(tmp_path / "straight", steps=60)
    subprocess.run(command("train", straight), check=True, timeout=300, capture_output=True)
    assert losses_of(run) == losses_of(tmp_path / "straight" / "run")
