"""Checkpoints are written beside the training, kept as told, asked for by a file, and a disk that is full costs one save."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.engine.paths import list_checkpoints, step_of
from megatron_poro.observe import read_metrics
from tests.runs import RUN, command, losses_of, poro, write_run


def run_file(folder: Path, inputs: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    sources = [{**source, "path": str(inputs / source["name"])} for source in RUN["data"]["sources"]]
    checkpoint = {"initial": str(inputs / "start"), **changes.pop("checkpoint", {})}
    return write_run(folder / "run.toml", {"data": {"sources": sources}, "checkpoint": checkpoint, **changes})


def steps_of(run: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(run)]


def tensors_of(checkpoint: Path) -> dict[str, str]:
    files = json.loads((checkpoint / "files.json").read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".distcp")}


@pytest.mark.parametrize("parallel", [{}, {"tensor": 2, "pipeline": 2, "data": 2}], ids=["one process", "TP2 x PP2 x DP2"])
def test_what_is_written_beside_the_training_is_what_a_waiting_run_writes(
    parallel: dict[str, int], inputs: Path, tmp_path: Path
) -> None:
    written = {}
    for asynchronous in (True, False):
        path = run_file(tmp_path / str(asynchronous), inputs, parallel=parallel)
        poro("train", path, f"checkpoint.asynchronous={str(asynchronous).lower()}")
        written[asynchronous] = {
            step: tensors_of(c) for step, c in zip((4, 8, 12), list_checkpoints(path.parent / "run"), strict=True)
        }
    assert written[True] == written[False]
    assert all(written[True].values())


def test_the_newest_and_every_so_many_steps_are_kept(inputs: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path, inputs, checkpoint={"save_every_steps": 2, "keep_last": 2, "keep_every_steps": 6})
    poro("train", path)
    assert steps_of(tmp_path / "run") == [6, 10, 12]


def test_a_checkpoint_moved_behind_a_link_and_a_leftover_that_stays_cost_no_save(inputs: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path, inputs, checkpoint={"save_every_steps": 2, "keep_last": 1})
    poro("train", path, "--stop-after=2")
    saved, moved = tmp_path / "run" / "checkpoints" / "step_00000002", tmp_path / "moved"
    saved.rename(moved)
    saved.symlink_to(moved)
    stays = saved.with_name("partial-step_00000001")
    stays.mkdir()
    (stays / "busy").touch()
    # Deleting fails as it does for a file that a server or a mount holds: root is stopped by no mode bit.
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import shutil\nreal = shutil.rmtree\n"
        "def rmtree(path, *rest, **names):\n"
        "    if str(path).endswith('step_00000001'):\n        raise OSError(16, 'Device or resource busy', str(path))\n"
        "    real(path, *rest, **names)\n"
        "shutil.rmtree = rmtree\n"
    )
    done = poro("train", path, PYTHONPATH=f"{hook}:{os.environ.get('PYTHONPATH', '')}")
    assert "a leftover could not be deleted" in done.stderr
    assert "was not saved" not in done.stderr
    assert steps_of(tmp_path / "run") == [12]
    assert (moved / "files.json").exists()


def test_the_file_save_saves_and_the_file_stop_saves_and_ends(inputs: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path, inputs, training={"steps": 2000}, checkpoint={"save_every_steps": 0})
    run = tmp_path / "run"
    training = subprocess.Popen(command("train", path), stdout=subprocess.PIPE, text=True)
    assert training.stdout is not None
    for line in training.stdout:
        if line.startswith("step 1/"):
            (run / "save").touch()
        if line.startswith("saved"):
            assert not (run / "save").exists()
            (run / "stop").touch()
            break
    training.stdout.read()
    assert training.wait(120) == 75
    assert not (run / "stop").exists()
    first, second = steps_of(run)
    assert 0 < first < second < 2000
    (run / "stop").touch()
    assert "not started" in poro("train", path, code=75).stdout
    assert steps_of(run) == [first, second]


def test_a_save_that_cannot_be_removed_is_heeded_once_and_a_full_disk_behind_the_output_ends_nothing(
    inputs: Path, tmp_path: Path
) -> None:
    path = run_file(tmp_path, inputs, checkpoint={"save_every_steps": 0})
    (tmp_path / "run" / "save").mkdir(parents=True)
    with open("/dev/full", "w") as full:
        done = subprocess.run(command("train", path), stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "run/save: Is a directory; it is not looked for any more" in done.stderr
    assert steps_of(tmp_path / "run") == [1, 12]


@pytest.mark.parametrize("parallel", [{}, {"data": 2}], ids=["one process", "DP2"])
def test_a_full_disk_costs_that_save_and_not_the_run(parallel: dict[str, int], inputs: Path, tmp_path: Path) -> None:
    path = run_file(tmp_path, inputs, parallel=parallel)
    poro("train", path, "--stop-after=3")
    # A limit on the size of files stands for the disk: a write beyond it fails as one to a full disk does.
    limited = ["bash", "-c", 'trap "" XFSZ; ulimit -f 400; exec "$@"', "bash", *command("train", path)]
    done = subprocess.run(limited, capture_output=True, text=True, check=False, env=dict(os.environ), timeout=300)
    assert done.returncode == 74, done.stderr
    assert done.stderr.count("was not saved") == 3
    assert "error: the run ends unsaved" in done.stderr
    assert steps_of(tmp_path / "run") == [3]
    assert not list((tmp_path / "run" / "checkpoints").glob("partial-*"))
    failed = [r["step"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if r["event"] == "checkpoint_failed"]
    assert failed == [4, 8, 12]
    before = losses_of(tmp_path / "run")
    poro("train", path)
    assert losses_of(tmp_path / "run") == before
    assert steps_of(tmp_path / "run") == [3, 4, 8, 12]
