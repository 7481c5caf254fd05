"""From a run file to running ranks. What can be checked before a process group exists is checked here, without torch."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_poro.config import RANDOM, RunConfig, load_run
from megatron_poro.config.duration import RunPoint, duration_of
from megatron_poro.config.duration_rules import find_batch_problems
from megatron_poro.engine.forking import FORKS, become_ranks, can_fork
from megatron_poro.engine.heartbeat import HEARTBEATS
from megatron_poro.engine.injection import FAULT, parse_faults
from megatron_poro.engine.launch import World, die_with_parent, process_began, read_world, start_child, start_local, start_name
from megatron_poro.engine.paths import find_newest, list_checkpoints, read_state, step_of
from megatron_poro.errors import STOPPED_CODE, USER_ERRORS, CheckpointError, ConfigError
from megatron_poro.topology import Layout, build_layout
from megatron_poro.training.failures import Start, note_end
from megatron_poro.training.lock import lock_run
from megatron_poro.training.rank import load_engine, run_rank
from megatron_poro.training.resume import check_resume
from megatron_poro.training.signals import STOP, STOP_SIGNALS
from megatron_poro.training.supervisor import watch_ranks

GOOD_CODES = frozenset({0, STOPPED_CODE})
SPEAK_LATER_SECONDS = 2.0


def run_training(path: Path, overrides: Sequence[str], *, stop_after: RunPoint | None = None) -> int:
    """Train the run file to its end, resuming where it stands; returns the exit code.

    Under torchrun or srun this process watches one rank, elsewhere all ranks that the layout needs on this machine; the ranks are
    processes of their own, which run this again. `stop_after` saves and ends once the run has come that far.
    """
    if FORKS in os.environ:
        become_ranks(load_engine)
    world = read_world(os.environ)
    config = _load_in_turn(path, overrides, world.rank if world else 0)
    duration = duration_of(config)
    last_step = duration.num_steps if stop_after is None else min(stop_after.step(duration), duration.num_steps)
    if world is not None and HEARTBEATS in os.environ:
        die_with_parent()
        return run_rank(config, world, prepare=lambda: _prepare(config, world), last_step=last_step)
    _stop_at_once()
    command = [sys.executable, "-m", "megatron_poro", "train", str(path), *overrides, f"--stop-after={last_step}"]
    parse_faults(os.environ.get(FAULT, ""))
    if world is not None:
        return _supervise_one(config, world, command)
    layout = local_layout(config)
    check_before_launch(config, layout)
    make_run_directory(config)
    with lock_run(Path(config.run_directory)):
        asked_to_stop = stop_file_was_there(Path(config.run_directory))
        if done := find_finished(config):
            check_against(config, done)
            print(f"{config.run_directory} is done: {duration.num_steps} steps; its last checkpoint is {done}")
            return 0
        if asked_to_stop:
            print(f"not started: {Path(config.run_directory) / STOP} asked for that and is removed; the same command goes on")
            return STOPPED_CODE
        print(f"starting {layout.world_size} process{'es' * (layout.world_size > 1)} for {layout}", flush=True)
        _say_where(config)
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        start = Start(name, True, time.time(), config.run_directory, process_began())
        with watch_ranks(start, config.faults, layout.world_size, speaks=True) as watch:
            code = start_local(command, layout.world_size, good_codes=GOOD_CODES, watch=watch, forks=can_fork())
            note_end(start, code)
            return code


def _stop_at_once() -> None:
    """Until there are ranks to tell, a stop signal ends this process as it would end the run."""

    def stop(number: int, frame: object) -> None:
        print("stopped before the start; the same command goes on", flush=True)
        sys.exit(STOPPED_CODE)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)


def _load_in_turn(path: Path, overrides: Sequence[str], rank: int) -> RunConfig:
    """The run file. A mistake in it is seen by all ranks; the others wait for the first to say so and to end the step."""
    try:
        return load_run(path, overrides)
    except USER_ERRORS:
        time.sleep(SPEAK_LATER_SECONDS if rank else 0.0)
        raise


def _supervise_one(config: RunConfig, world: World, command: Sequence[str]) -> int:
    """Run the rank that torchrun or srun meant this process to be, and watch it."""
    make_run_directory(config)
    if world.rank == 0:
        _say_where(config)
    name, is_unique = start_name(os.environ)
    start = Start(name, is_unique, time.time(), config.run_directory, process_began())
    with watch_ranks(start, config.faults, world.size, speaks=world.local_rank == 0) as watch:
        code = start_child(command, world, good_codes=GOOD_CODES, watch=watch)
        if world.rank == 0:
            note_end(start, code)
        return code


def _say_where(config: RunConfig) -> None:
    run = config.run_directory
    print(f"what happens to the run is noted in {run}/events.jsonl; a hang writes every rank's stacks to {run}/stacks", flush=True)


def _prepare(config: RunConfig, world: World) -> Layout:
    """The layout, after the checks that a launcher on this machine has made already."""
    layout = layout_of(config, world.size)
    if not world.is_local:
        check_before_launch(config, layout)
    return layout


def find_finished(config: RunConfig) -> Path | None:
    """The run's last checkpoint when no step is left to take."""
    newest = find_newest(Path(config.run_directory))
    return newest if newest and step_of(newest) == duration_of(config).num_steps else None


def check_against(config: RunConfig, checkpoint: Path) -> None:
    """Raise CheckpointError when the run file asks for another run than the one that the checkpoint is of."""
    from megatron_poro.data import TrainingData, look_up_eod  # numpy

    config = replace(config, data=look_up_eod(config.data))
    data = TrainingData(config.data)
    try:
        check_resume(config, checkpoint, read_state(checkpoint)["data"], data.fingerprint())
    finally:
        data.close()


def stop_file_was_there(run_directory: Path) -> bool:
    """Whether the run was asked to stop while it did not run; the file is removed."""
    there = (run_directory / STOP).exists()
    (run_directory / STOP).unlink(missing_ok=True)
    return there


def local_layout(config: RunConfig) -> Layout:
    """The layout when nobody else starts the processes: one model copy unless parallel.data says more."""
    parallel = config.parallel
    return Layout(parallel.tensor, parallel.pipeline, max(parallel.data, 1), parallel.virtual_stages, parallel.context)


def layout_of(config: RunConfig, world_size: int) -> Layout:
    """The layout on that many processes. Raises LayoutError or ConfigError when it does not fit them or the batch."""
    parallel = config.parallel
    layout = build_layout(
        parallel.tensor, parallel.pipeline, parallel.virtual_stages, world_size=world_size, context=parallel.context
    )
    if parallel.data and parallel.data != layout.data:
        context = f" x parallel.context {parallel.context}" if parallel.context > 1 else ""
        raise ConfigError(
            [
                f"parallel.data ({parallel.data}) does not fit: {world_size} processes / (parallel.tensor {parallel.tensor} x "
                f"parallel.pipeline {parallel.pipeline}{context}) = {layout.data}; set it to 0 or {layout.data}"
            ]
        )
    check_batch(config, layout)
    return layout


def check_batch(config: RunConfig, layout: Layout) -> None:
    """Raise ConfigError when a global batch does not divide over data ranks, micro-batches and, with virtual stages, stages."""
    problems = list(find_batch_problems(config.training, layout))
    if problems:
        raise ConfigError(problems)


def check_before_launch(config: RunConfig, layout: Layout) -> None:
    """Raise the user's mistakes that would otherwise show on every rank: batch, data files, start checkpoint."""
    check_batch(config, layout)
    _check_data(config)
    initial = config.checkpoint.initial
    needs_initial = initial != RANDOM and not list_checkpoints(Path(config.run_directory))
    if needs_initial and not (Path(initial) / ".metadata").is_file():
        raise CheckpointError(
            f"checkpoint.initial: {initial} is no Megatron distributed checkpoint (it has no .metadata); "
            "make one with `poro convert to-megatron HF_DIR OUT`"
        )


def make_run_directory(config: RunConfig) -> None:
    """Make the run directory. Raises ConfigError when that cannot be."""
    try:
        Path(config.run_directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"run_directory: cannot be made: {error}"]) from None


def _check_data(config: RunConfig) -> None:
    """Raise the user's mistakes about data files; a tokenizer larger than the model is seen in the manifests already."""
    # numpy, which a supervisor under srun does without
    from data_indexing.manifest import load_manifest
    from megatron_poro.data import TrainingData, look_up_eod

    TrainingData(config.data).close()
    look_up_eod(config.data)
    paths = [part.path for part in config.data.sources] + [part.path for part in config.data.validation if part.path]
    for path in paths:
        manifest = load_manifest(path)
        if manifest and manifest.tokenizer and manifest.tokenizer.vocab_size > config.model.vocab_size:
            raise ConfigError(
                [
                    f"model.vocab_size ({config.model.vocab_size}) is below the {manifest.tokenizer.vocab_size} token ids of the "
                    f"tokenizer that {path} was made with; take the model's own tokenizer"
                ]
            )
