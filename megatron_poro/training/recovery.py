"""Where a run goes on: from its newest whole checkpoint, or, after several bad steps in a row, from one before them.

A bad step is left out: its samples are read and nothing is learned from them. A rollback leaves their samples out for good; which
ones those are stands in the run directory, beside the checkpoints, so that a kill after it changes nothing.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_poro.data import LEFT_OUT, TrainingData, Windows, documents_of, read_windows, to_windows
from megatron_poro.engine.checkpoint import find_damage, load_training
from megatron_poro.engine.groups import first_rank_decides
from megatron_poro.engine.paths import list_checkpoints, read_state, set_aside, step_of
from megatron_poro.engine.phases import Phase, enter, resume_at
from megatron_poro.errors import CheckpointError, TrainingError, UnsavedError
from megatron_poro.training.resume import check_resume
from megatron_poro.training.state import TrainState
from megatron_poro.training.trainer import Trainer

BAD_STEPS = "bad_steps.jsonl"
MOST_ROLLBACKS = 3
"""Rollbacks to one and the same checkpoint: what three windows of samples do not cure is not the samples' fault."""


def resume(trainer: Trainer) -> Path | None:
    """Load the newest checkpoint of the run whose files are as they were written; None when there is none.

    Damaged ones are set aside on the way, never deleted. Raises CheckpointError when the run file differs from the checkpoint's
    in what it may not. Every rank must call it.
    """
    while True:
        checkpoint = first_rank_decides(lambda: next(reversed(list_checkpoints(trainer.run_directory)), None))
        if checkpoint is None:
            trainer.windows = first_rank_decides(lambda: left_out(trainer.run_directory))
            return None
        problem = find_damage(checkpoint)
        if not problem:
            load(trainer, checkpoint)
            return checkpoint
        if trainer.is_first:
            print(f"warning: {problem}; {checkpoint} is set aside as {set_aside(checkpoint).name}", file=sys.stderr, flush=True)


def load(trainer: Trainer, checkpoint: Path) -> None:
    """Stand where a checkpoint of this run stands. Every rank must call it."""
    enter(Phase.LOADING)
    saved = read_state(checkpoint)
    check_resume(trainer.config, checkpoint, saved["data"], trainer.data.fingerprint())
    trainer.state = TrainState.read(saved)
    trainer.windows = first_rank_decides(lambda: left_out(trainer.run_directory, saved))
    trainer.monitor.restore(saved.get("monitor", {}))
    trainer.last_saved = trainer.state.step
    resume_at(trainer.state.step)
    load_training(checkpoint, trainer.config.model, trainer.chunks, trainer.optimizer, num_updates=trainer.state.updates)


def report_bad_step(trainer: Trainer, reason: str, *, runs: list[range]) -> None:
    """Say which samples a step had read whose update was left out. Raises TrainingError when the run file wants none left out."""
    step, samples = trainer.state.step, ", ".join(f"{run.start}-{run.stop - 1}" for run in runs)
    if not trainer.config.faults.skip_bad_steps:
        raise TrainingError(
            f"step {step}: {reason}; nothing of it was saved. Lower optimizer.learning_rate, or look at samples {samples}"
        )
    trainer.write("bad_step", reason=reason, samples=[[run.start, run.stop - 1] for run in runs])
    if trainer.is_first:
        try:
            _note_origins(trainer.run_directory, trainer.data, {"step": step, "reason": reason}, runs=runs)
        except OSError as error:
            print(f"warning: {trainer.run_directory / BAD_STEPS}: {error.strerror}", file=sys.stderr)
        print(
            f"warning: step {step} is left out: {reason}; it had read samples {samples} "
            f"(`poro data inspect RUN.toml --samples {runs[0].start}-{runs[-1].stop - 1}` shows them)",
            file=sys.stderr,
            flush=True,
        )


def roll_back(trainer: Trainer) -> None:
    """Go back to the newest checkpoint before the bad steps in a row, and leave out what they read. Every rank must call it.

    Raises TrainingError when there is none, or when that did not help before.
    """
    first, stop, num_bad = trainer.monitor.bad_from, trainer.state.samples, trainer.monitor.bad_steps
    trainer.saver.finish(wait=True)
    checkpoint = first_rank_decides(lambda: _choose(trainer.run_directory, first, stop, num_bad=num_bad))
    if problem := find_damage(checkpoint):
        raise CheckpointError(f"{problem}; the run had to go back to it. Start it again: it takes the one before")
    load(trainer, checkpoint)
    trainer.write_start(str(checkpoint), left_out=[first, stop - 1])
    if trainer.is_first:
        print(f"warning: {num_bad} bad steps in a row: back to {checkpoint}, without samples {first}-{stop - 1}", file=sys.stderr)


def left_out(run_directory: Path, saved: dict[str, Any] | None = None) -> Windows:
    """The samples that a run leaves out: those in its file, and those that a checkpoint's state tells of.

    Rank 0 asks and tells the others: on a network file system they may still see the file as it was.
    """
    windows = read_windows(run_directory / LEFT_OUT)
    for first, stop in to_windows((saved or {}).get("left_out", [])).spans:
        windows = windows.with_span(first, stop)
    return windows


def _choose(run_directory: Path, first: int, stop: int, *, num_bad: int) -> Path:
    """The newest checkpoint that read nothing from sample `first` on, once it is written down that those to `stop` are left out.

    Later checkpoints are set aside: a restart would take them. Nothing is touched before there is one to go back to.
    """
    found = list_checkpoints(run_directory)
    target = next((checkpoint for checkpoint in reversed(found) if _is_before(checkpoint, first)), None)
    if target is None:
        raise TrainingError(
            f"{num_bad} bad steps in a row, and no checkpoint before them to go back to; nothing of them was saved. "
            f"Lower optimizer.learning_rate, or look at samples {first}-{stop - 1}"
        )
    path = run_directory / LEFT_OUT
    try:
        content = _with_rollback(path, first, stop, back_to=step_of(target))
        for later in reversed(found[found.index(target) + 1 :]):
            set_aside(later)
        _replace(path, content)
    except OSError as error:
        raise UnsavedError(
            f"{path}: {error.strerror}: what a rollback leaves out cannot be noted; free space and start it again"
        ) from None
    return target


def _is_before(checkpoint: Path, first: int) -> bool:
    try:
        return bool(read_state(checkpoint)["samples"] <= first)
    except CheckpointError:
        return False


def _with_rollback(path: Path, first: int, stop: int, *, back_to: int) -> dict[str, Any]:
    """The run's file with one more window. Raises TrainingError when `back_to` was gone back to too often."""
    rollbacks = json.loads(path.read_text(encoding="utf-8"))["rollbacks"] if path.exists() else []
    if sum(rollback["back_to"] == back_to for rollback in rollbacks) >= MOST_ROLLBACKS:
        raise TrainingError(
            f"the run went back to step {back_to} {MOST_ROLLBACKS} times and met bad steps again, so it is not the samples; lower "
            f"optimizer.learning_rate, or go back further by moving the newest checkpoints away"
        )
    windows = read_windows(path).with_span(first, stop)
    return {"left_out": windows.as_list(), "rollbacks": [*rollbacks, {"back_to": back_to, "samples": [first, stop - 1]}]}


def _replace(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def _note_origins(run_directory: Path, data: TrainingData, record: dict[str, Any], *, runs: list[range]) -> None:
    """Append where each sample of a step came from, down to its documents."""
    origins = []
    for origin in (origin for run in runs for origin in documents_of(data, run)):
        origins.append({**asdict(origin), "documents": [origin.documents.start, origin.documents.stop - 1]})
    with open(run_directory / BAD_STEPS, "a", encoding="utf-8") as file:
        file.write(json.dumps({**record, "origins": origins}) + "\n")
