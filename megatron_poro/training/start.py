"""From a run file to running ranks. What can be checked before a process group exists is checked here, without torch."""

import contextlib
import fcntl
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_indexing.manifest import load_manifest
from megatron_poro.config import RANDOM, RunConfig, load_run
from megatron_poro.config.duration import RunPoint, duration_of
from megatron_poro.config.duration_rules import find_batch_problems
from megatron_poro.data import TrainingData
from megatron_poro.engine.injection import read_injection
from megatron_poro.engine.launch import World, alone, die_with_parent, export_world, read_world, start_local
from megatron_poro.engine.paths import list_checkpoints, read_state
from megatron_poro.engine.phases import Pulse, start_pulse
from megatron_poro.errors import STOPPED_CODE, USER_ERROR_CODE, USER_ERRORS, CheckpointError, ConfigError, LaunchError
from megatron_poro.topology import Layout, build_layout

LOCK_PATIENCE_SECONDS = 10.0


def run_training(path: Path, overrides: Sequence[str], *, stop_after: RunPoint | None = None) -> int:
    """Train the run file to its end, resuming where it stands; returns the exit code.

    Under torchrun or srun this process is one rank. Otherwise it starts the ranks that the layout needs on this machine.
    `stop_after` saves and ends once the run has come that far.
    """
    config = load_run(path, overrides)
    duration = duration_of(config)
    last_step = duration.num_steps if stop_after is None else min(stop_after.step(duration), duration.num_steps)
    world = read_world(os.environ)
    if world is not None:
        die_with_parent()
        return _run_rank(config, world, last_step)
    layout = local_layout(config)
    check_before_launch(config, layout)
    with lock_run(Path(config.run_directory)):
        if done := find_finished(config):
            print(f"{config.run_directory} is done: {duration.num_steps} steps; its last checkpoint is {done}")
            return 0
        print(f"starting {layout.world_size} processes for {layout}", flush=True)
        if layout.world_size == 1:
            return _run_rank(config, alone(), last_step)
        command = [sys.executable, "-m", "megatron_poro", "train", str(path), *overrides, f"--stop-after={last_step}"]
        return start_local(command, layout.world_size, good_codes=frozenset({0, STOPPED_CODE}))


def find_finished(config: RunConfig) -> Path | None:
    """The run's last checkpoint when no step is left to take."""
    newest = list_checkpoints(Path(config.run_directory))[-1:]
    return next((path for path in newest if read_state(path)["step"] == duration_of(config).num_steps), None)


def local_layout(config: RunConfig) -> Layout:
    """The layout when nobody else starts the processes: one model copy unless parallel.data says more."""
    parallel = config.parallel
    return Layout(parallel.tensor, parallel.pipeline, max(parallel.data, 1), parallel.virtual_stages)


def layout_of(config: RunConfig, world: World) -> Layout:
    """The layout on the processes that exist. Raises LayoutError or ConfigError when it does not fit them or the batch."""
    parallel = config.parallel
    layout = build_layout(parallel.tensor, parallel.pipeline, parallel.virtual_stages, world_size=world.size)
    if parallel.data and parallel.data != layout.data:
        raise ConfigError(
            [
                f"parallel.data ({parallel.data}) does not fit: {world.size} processes / (parallel.tensor {parallel.tensor} x "
                f"parallel.pipeline {parallel.pipeline}) = {layout.data}; set it to 0 or {layout.data}"
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
    """Raise the user's mistakes that would otherwise show on every rank: batch, data files, start checkpoint, run directory."""
    check_batch(config, layout)
    _check_data(config)
    initial = config.checkpoint.initial
    needs_initial = initial != RANDOM and not list_checkpoints(Path(config.run_directory))
    if needs_initial and not (Path(initial) / ".metadata").is_file():
        raise CheckpointError(
            f"checkpoint.initial: {initial} is no Megatron distributed checkpoint (it has no .metadata); "
            "make one with `poro convert to-megatron HF_DIR OUT`"
        )
    try:
        Path(config.run_directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"run_directory: cannot be made: {error}"]) from None


def _check_data(config: RunConfig) -> None:
    """Raise the user's mistakes about data files; a tokenizer larger than the model is seen in the manifests already."""
    TrainingData(config.data).close()
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


@contextlib.contextmanager
def lock_run(run_directory: Path) -> Iterator[None]:
    """Hold the run directory: a second start waits a little for a dying first one, then is refused."""
    with open(run_directory / "lock", "w") as lock:
        deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LaunchError(
                        f"{run_directory}: another process trains this run; wait for it, or give another run_directory"
                    ) from None
                time.sleep(0.1)
            except OSError as error:  # a file system without locks (some Lustre mounts)
                print(f"warning: {run_directory} cannot be locked ({error}); do not start the run twice", file=sys.stderr)
                break
        yield


def _run_rank(config: RunConfig, world: World, last_step: int) -> int:
    """Train as one rank. After an error this rank ends at once, without another collective: the others may be anywhere."""
    try:
        start_pulse(Pulse(injection=read_injection(os.environ, world.rank)))
        export_world(world)
        layout = layout_of(config, world)
        if not world.is_local:
            check_before_launch(config, layout)
        _quiet_known_warnings()
        from megatron_poro.engine.platform import start_platform  # loads torch

        platform = start_platform(world.local_rank)
        from megatron_poro.training.loop import train  # loads megatron-core, which must find the platform

        with lock_run(Path(config.run_directory)) if world.rank == 0 and not world.is_local else contextlib.nullcontext():
            reached = train(config, world, layout, platform, last_step=last_step)
    except USER_ERRORS as error:
        return _end_rank(world, USER_ERROR_CODE, str(error))
    except Exception:
        if world.size == 1:
            raise
        import traceback

        return _end_rank(world, 1, traceback.format_exc())
    return 0 if reached else STOPPED_CODE


def _quiet_known_warnings() -> None:
    """megatron-core warns on import about optional packages (`poro doctor` lists them) and about its own use of torch."""
    warnings.filterwarnings("ignore", module=r"megatron\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def _end_rank(world: World, code: int, message: str) -> int:
    """Say what went wrong and end. Rank 0 speaks first; what all ranks would say is then said once."""
    if world.rank:
        time.sleep(1.0)
    prefix = f"error (rank {world.rank})" if world.rank else "error"
    print("\n".join(f"{prefix}: {line}" for line in message.rstrip().splitlines()), file=sys.stderr, flush=True)
    if world.size > 1:
        os._exit(code)
    return code
