"""A run of several elements, looked at from outside: one wandb run, every second accounted for."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.observe.wandb_server import wandb_server
from tests.runs import command, losses_of
from tests.slurm.arrays import launch, num_notes, ranks, run_file, status, trains_on, wait_until
from tests.slurm.cluster import Slurm


def test_three_elements_with_two_kills_are_one_wandb_run_and_every_second_is_accounted_for(slurm: Slurm, tmp_path: Path) -> None:
    path, run = run_file(tmp_path, steps=60, observe={"wandb_project": "poro"}), tmp_path / "run"
    array = launch(slurm, path, "--elements", "3", "--time", "0:10:00", WANDB_SILENT="true")  # in a job, offline by itself
    for kills in range(2):
        trains_on(slurm, run, after=kills)
        os.kill(ranks(run)[1], signal.SIGKILL)
        wait_until(lambda kills=kills: num_notes(run, "end") == kills + 1, "the end of an element")  # type: ignore[misc]
    wait_until(lambda: status(slurm, run)["state"] == "done", "the end of the run")
    wait_until(lambda: not slurm.run("squeue", "--noheader", "--jobs", array, check=False).stdout, "an empty queue")

    parts = {folder.name.rsplit("-", 1)[1] for folder in (run / "wandb").glob("offline-run-*")}
    assert parts == {(run / "wandb_id").read_text()}
    with wandb_server() as server:
        slurm.run(*command("wandb-sync", run), env={**slurm.environment, **server.environment()})
        (held,) = server.runs.values()
    losses = losses_of(run)
    assert {step: loss for step, loss in held.curve("train/loss").items() if step} == {
        step: loss for step, (loss, _) in losses.items()
    }
    assert held.steps == list(range(61))
    titles = [alert["title"] for alert in held.alerts]
    assert (titles.count("restart"), titles.count("failure"), titles.count("done")) == (2, 2, 1)

    told = json.loads(slurm.run(*command("goodput", "--json", run)).stdout)
    assert sum(told["seconds"].values()) == pytest.approx(told["wall_seconds"])
    assert told["seconds"]["recomputed steps"] > 0
    assert len(told["starts"]) == 3
    for n, stay in enumerate(told["starts"]):
        job = slurm.run("scontrol", "show", "job", f"{array}_{n}", env={**slurm.environment, "SLURM_TIME_FORMAT": "%s"}).stdout
        times = dict(word.split("=", 1) for word in job.split() if word.startswith(("StartTime=", "EndTime=")))
        # Slurm's seconds are whole ones.
        assert stay["end"] - stay["begin"] == pytest.approx(int(times["EndTime"]) - int(times["StartTime"]), abs=2.0)
