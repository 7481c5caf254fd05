"""Slurm's commands answer late, not at all, or with something else: commands of the same names stand in for them."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from megatron_poro.errors import LaunchError
from megatron_poro.slurm import commands, element
from megatron_poro.slurm.commands import SlurmError, call, queued
from megatron_poro.slurm.control import cancel, stop
from megatron_poro.slurm.launch import prepare, submit
from megatron_poro.slurm.pipeline import launch_pipeline, render_pipeline
from megatron_poro.slurm.records import Job, load_job, note, read_notes, save_job
from megatron_poro.slurm.script import NOTHING_TO_DO
from megatron_poro.slurm.size import Request
from megatron_poro.slurm.status import read_status
from megatron_poro.slurm.submission import submit_script
from megatron_poro.training import lock
from megatron_poro.training.signals import STOP
from tests.runs import poro
from tests.slurm.test_script import write_inputs


class Fakes:
    """Slurm's commands as bash programs. `calls` is what they were called with, a line each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        for name in ("sbatch", "squeue", "scontrol", "scancel", "sinfo"):
            self.says(name, "")

    def says(self, name: str, program: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>{self.folder}/calls\ncd {self.folder}\n{program}\n')
        path.chmod(0o755)

    def queue_holds(self, *lines: str) -> None:
        """What squeue says of jobs by number: number, state."""
        said = "\n".join(f"echo '{line}|None|run|0:00|1:00||0|'" for line in lines)
        self.says("squeue", said or "true")

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def called(self, start: str) -> list[str]:
        return [line for line in self.calls if line.startswith(start)]


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made = Fakes(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.folder}:/usr/bin:/bin")
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(commands, "PAUSE_SECONDS", 0.0)
    return made


def request(path: Path, **changes: Any) -> Request:
    return Request(path, **{"cluster": "test", "nodes": 1, "tasks_per_node": 1, "elements": 3, "minutes": 10, **changes})


def launched(folder: Path, fakes: Fakes, **changes: Any) -> Job:
    """A run in FOLDER/run whose array has the number 7."""
    fakes.says("sbatch", "echo 7")
    return submit(prepare(request(write_inputs(folder), **changes)))


@pytest.mark.parametrize(
    "answer",
    [
        "echo 'Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1",
        "exec sleep 60",
        "echo 'the answer got lost'",
    ],
)
def test_a_submission_whose_answer_is_lost_is_looked_for_and_not_repeated(
    answer: str, fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "COMMAND_SECONDS", 2.0)
    fakes.says("sbatch", f"touch there; {answer}")
    fakes.says("squeue", f"echo '5|RUNNING|{tmp_path}'; echo '3|PENDING|/elsewhere'; [ ! -e there ] || echo '7|PENDING|{tmp_path}'")
    assert submit_script(("sbatch", "job.sh"), tmp_path) == "7"
    assert len(fakes.called("sbatch")) == 1


def test_a_submission_that_did_not_arrive_is_repeated(fakes: Fakes, tmp_path: Path) -> None:
    fakes.says(
        "sbatch", "[ -e once ] && { echo 'Welcome!'; echo '8;lumi'; exit; }; touch once; echo 'Connection refused' >&2; exit 1"
    )
    assert submit_script(("sbatch", "job.sh"), tmp_path) == "8"


def test_an_answer_without_a_number_is_no_launch(fakes: Fakes, tmp_path: Path) -> None:
    fakes.says("sbatch", "echo hello")
    with pytest.raises(SlurmError, match="its answer names no job: 'hello'"):
        launched_with(fakes, tmp_path)
    assert load_job(tmp_path / "run") is None


def launched_with(fakes: Fakes, folder: Path) -> Job:
    return submit(prepare(request(write_inputs(folder))))


def test_an_array_that_no_file_knows_of_is_not_submitted_beside(fakes: Fakes, tmp_path: Path) -> None:
    job = launched(tmp_path, fakes)
    logs = tmp_path / "run" / "slurm" / "logs"
    fakes.says("squeue", f"[[ $* == *--me* ]] && echo '7|PENDING|{logs}' || echo '7_0|PENDING|None|run|0:00|1:00||0|'")
    save_job(Job(**{**vars(job), "ids": ()}))  # the launch was killed before it could note the number
    with pytest.raises(LaunchError, match="launched already: 7_0 is pending"):
        launched(tmp_path, fakes)
    assert read_status(tmp_path / "run").state == "waiting"
    assert "1 element cancelled" in cancel(tmp_path / "run")
    assert fakes.called("scancel") == ["scancel --state=PENDING 7"]
    (tmp_path / "run" / "slurm" / "job.json").unlink()  # damaged, and moved away as it says
    with pytest.raises(LaunchError, match="launched already: 7_0 is pending"):
        launched(tmp_path, fakes)
    assert len(fakes.called("sbatch")) == 1


def test_a_chain_that_is_refused_half_way_says_what_was_submitted(fakes: Fakes, tmp_path: Path) -> None:
    path = write_inputs(tmp_path)
    fakes.says("sbatch", "[ -e once ] && { echo 'QOSMaxSubmitJobPerUserLimit' >&2; exit 1; }; touch once; echo 7")
    with pytest.raises(LaunchError, match="QOSMaxSubmitJobPerUserLimit; 1 of 3 elements were submitted before and will train"):
        submit(prepare(request(path, mode="chain")))
    job = load_job(tmp_path / "run")
    assert job is not None
    assert job.ids == ("7",)


def test_of_a_queue_that_does_not_answer_nothing_is_said(fakes: Fakes, tmp_path: Path) -> None:
    launched(tmp_path, fakes)
    fakes.says("squeue", "echo 'slurm_load_jobs error: Access denied' >&2; exit 1")
    status = read_status(tmp_path / "run")
    assert (status.state, status.queue) == ("unknown", "squeue: slurm_load_jobs error: Access denied")


def test_a_job_whose_reservation_was_deleted_is_in_the_queue(fakes: Fakes) -> None:
    fakes.queue_holds("7_0|RESV_DEL_HOLD", "7_1|COMPLETED", "7_2|SIGNALING")
    assert [(job.job, job.is_running) for job in queued(["7"])] == [("7_0", False), ("7_2", True)]


def test_bytes_that_are_no_text_are_read(fakes: Fakes) -> None:
    fakes.says("scontrol", r"printf 'Comment=\xe4 JobId=3'")
    assert commands.show_job("3")["JobId"] == "3"


def test_of_a_job_that_a_launch_is_called_inside_nothing_reaches_the_new_one(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.says("sbatch", "env >seen; echo 7")
    fakes.says("squeue", "env >asked")
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SRUN_CPUS_PER_TASK", "SLURM_CONF", "SQUEUE_PARTITION", "MINE"):
        monkeypatch.setenv(name, "1")
    call("sbatch", "job.sh")
    seen = {line.partition("=")[0] for line in (fakes.folder / "seen").read_text().splitlines()}
    assert seen & {"SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SRUN_CPUS_PER_TASK", "SLURM_CONF", "MINE"} == {"SLURM_CONF", "MINE"}
    queued(["7"])
    assert "SQUEUE_PARTITION" not in (fakes.folder / "asked").read_text()


@pytest.mark.parametrize(("state", "is_queued"), [("COMPLETING Reason=None", False), ("COMPLETING Reason=TimeLimit", True)])
def test_a_job_that_was_cancelled_does_not_queue_itself_again(
    state: str, is_queued: bool, fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = launched(tmp_path, fakes, mode="requeue")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert element.begin(job.folder) == 0
    fakes.says("scontrol", f"echo 'JobId=7 JobState={state}'")
    element.end(job.folder, 75)
    assert bool(fakes.called("scontrol requeue")) == is_queued


def test_an_element_that_was_told_to_stop_before_it_began_does_not_begin(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = launched(tmp_path, fakes, mode="requeue")
    fakes.queue_holds("7|CONFIGURING")
    assert "element 7 saves and ends" in stop(tmp_path / "run")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert element.begin(job.folder) == NOTHING_TO_DO
    assert not [record for record in read_notes(tmp_path / "run") if record["event"] == "begin"]
    assert not (tmp_path / "run" / STOP).exists()


def test_a_stop_that_nobody_was_there_to_heed_does_not_stop_the_next_launch(fakes: Fakes, tmp_path: Path) -> None:
    launched(tmp_path, fakes)
    (tmp_path / "run" / STOP).touch()
    launched(tmp_path, fakes)
    assert not (tmp_path / "run" / STOP).exists()


def test_a_run_on_this_machine_does_not_take_the_job_around_it_for_its_own(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = launched(tmp_path, fakes, cluster="local")
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    assert element.begin(job.folder) == 0
    with pytest.raises(LaunchError, match="runs without Slurm"):
        cancel(tmp_path / "run")
    assert not fakes.called("scancel")


def measured(folder: Path, *nodes: str, devices: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for node in nodes:
        found = {"node": node, "devices": devices, "memory_gb": [], "seconds": [1.0], "problem": "", "local_disk_gb": 9.0}
        (folder / f"{node}.json").write_text(json.dumps({**found, "links_down": []}))
    return folder


def test_nodes_that_all_fail_the_check_are_not_left_out(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes.says("sinfo", "echo 'a|mixed'; echo 'b|mixed'; echo 'c|idle'; echo 'd|idle'")
    fakes.says("scontrol", '[ "$2" != hostnames ] || { echo a; echo b; }')
    job = launched(tmp_path, fakes, nodes=2)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "a,b")
    assert element.check_nodes(job.folder, tmp_path / "none") == 0
    assert "no node passes the check (did not answer the node check)" in capsys.readouterr().err
    assert not [record for record in read_notes(tmp_path / "run") if record["event"] == "exclude"]
    assert element.check_nodes(job.folder, measured(tmp_path / "one", "a")) == NOTHING_TO_DO
    assert [record["node"] for record in read_notes(tmp_path / "run") if record["event"] == "exclude"] == ["b"]


def test_one_node_after_the_other_is_left_out_as_often_as_the_brake_says(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.says("sinfo", 'for node in a b c d e; do echo "$node|idle"; done')
    fakes.says("scontrol", '[ "$2" != hostnames ] || echo "$3"')
    job = launched(tmp_path, fakes, brake=2)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    codes = []
    for node in ("a", "b", "c"):
        monkeypatch.setenv("SLURM_JOB_NODELIST", node)
        note(tmp_path / "run", "begin", job="7", restart=0, step=0, nodes=[node], devices=1, num_events=0)
        codes.append(element.check_nodes(job.folder, tmp_path / "none"))
    assert codes == [NOTHING_TO_DO, NOTHING_TO_DO, 0]


def recipe(folder: Path, name: str = "recipe.toml", **changes: Any) -> Path:
    path = folder / name
    step = {"name": "look", "command": ["doctor"], "time": "0:10:00", "shares": 2, **changes}
    path.write_text(tomli_w.dumps({"directory": "recipe", "cluster": "test", "steps": [step]}))
    return path


def finish_shares(folder: Path, count: int) -> None:
    for index in range(count):
        assert element.finish(folder / "recipe" / "look" / "slurm", index, 0) == 0


def test_a_recipe_that_was_changed_is_not_done(fakes: Fakes, tmp_path: Path) -> None:
    fakes.says("sbatch", "echo 7")
    assert launch_pipeline(recipe(tmp_path), dry_run=False) == ["look: submitted 7"]
    finish_shares(tmp_path, 2)
    assert launch_pipeline(recipe(tmp_path), dry_run=False) == ["look: done"]
    (said,) = launch_pipeline(recipe(tmp_path, command=["doctor", "--json"]), dry_run=False)
    assert said.startswith("look: done, by another command than the recipe has now")
    assert launch_pipeline(recipe(tmp_path, shares=4), dry_run=False) == ["look: submitted 7"]
    assert element.ready(tmp_path / "recipe" / "look" / "slurm", 0) == 0


def test_two_recipes_do_not_share_a_folder(fakes: Fakes, tmp_path: Path) -> None:
    fakes.says("sbatch", "echo 7")
    launch_pipeline(recipe(tmp_path), dry_run=False)
    with pytest.raises(LaunchError, match=r"recipe belongs to recipe.toml; give other.toml a `directory` of its own"):
        launch_pipeline(recipe(tmp_path, "other.toml"), dry_run=False)


def test_two_launches_of_a_recipe_do_not_submit_at_once(fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOCK_PATIENCE_SECONDS", 0.0)
    (tmp_path / "recipe").mkdir()
    with (
        lock.hold_lock(tmp_path / "recipe" / "lock", ""),
        pytest.raises(LaunchError, match="another `poro launch --pipeline` submits its steps right now"),
    ):
        launch_pipeline(recipe(tmp_path), dry_run=False)
    assert not fakes.called("sbatch")


def test_a_step_that_ended_without_a_word_is_told_so(fakes: Fakes, tmp_path: Path) -> None:
    fakes.says("sbatch", "echo 7")
    launch_pipeline(recipe(tmp_path), dry_run=False)
    assert element.ready(tmp_path / "recipe" / "look" / "slurm", 0) == 0
    assert "failed        ended without saying why: cancelled, over its time" in render_pipeline(tmp_path / "recipe.toml")


def test_a_step_comes_after_a_run_that_was_trained_by_hand(fakes: Fakes, tmp_path: Path) -> None:
    path = write_inputs(tmp_path)
    poro("train", path)
    steps = [
        {"name": "train", "run": path.name, "nodes": 1, "tasks_per_node": 1, "elements": 1, "time": "0:10:00"},
        {"name": "look", "command": ["doctor"], "time": "0:10:00", "after": ["train"]},
    ]
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps({"directory": "recipe", "cluster": "test", "steps": steps}))
    fakes.says("sbatch", "echo 7")
    assert launch_pipeline(tmp_path / "recipe.toml", dry_run=False) == ["train: done", "look: submitted 7"]
    assert element.ready(tmp_path / "recipe" / "look" / "slurm", 0) == 0


def test_a_mistake_in_a_later_step_is_told_before_the_first_is_submitted(fakes: Fakes, tmp_path: Path) -> None:
    steps = [{"name": name, "command": ["doctor"], "time": time} for name, time in (("a", "0:10:00"), ("b", "ten minutes"))]
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps({"directory": "recipe", "cluster": "test", "steps": steps}))
    with pytest.raises(LaunchError, match="ten minutes"):
        launch_pipeline(tmp_path / "recipe.toml", dry_run=False)
    assert not fakes.called("sbatch")


def test_the_last_share_queues_itself_again_and_not_the_array_whose_number_it_has(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.says("sbatch", "echo 7")
    launch_pipeline(recipe(tmp_path), dry_run=False)
    for name, value in (("SLURM_ARRAY_JOB_ID", "7"), ("SLURM_ARRAY_TASK_ID", "1"), ("SLURM_JOB_ID", "7")):
        monkeypatch.setenv(name, value)
    element.finish(tmp_path / "recipe" / "look" / "slurm", 1, 1)
    assert fakes.called("scontrol requeue") == ["scontrol requeue 7_1"]
