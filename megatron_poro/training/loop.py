"""The training loop of one rank: start or resume, then step, log, validate and save until the run is done or told to stop."""

import contextlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from data_indexing.progress import progress
from megatron_poro import __version__
from megatron_poro.config import RANDOM, RunConfig, TrainingConfig, save_run
from megatron_poro.config.duration import Duration, duration_of
from megatron_poro.config.parse import to_plain
from megatron_poro.data import TrainingData, ledger_at
from megatron_poro.engine import checkpoint as checkpoints
from megatron_poro.engine import phases
from megatron_poro.engine.checkpoint import TrainState
from megatron_poro.engine.groups import start_groups, stop_groups
from megatron_poro.engine.launch import World
from megatron_poro.engine.model import build_model
from megatron_poro.engine.optimizer import build_optimizer, set_learning_rate
from megatron_poro.engine.paths import checkpoint_path, list_checkpoints, read_state
from megatron_poro.engine.phases import Phase
from megatron_poro.engine.platform import Platform
from megatron_poro.engine.schedule import learning_rate
from megatron_poro.engine.step import StepResult, evaluate, train_step
from megatron_poro.errors import TrainingError
from megatron_poro.observe import SinkGroup, open_sinks
from megatron_poro.topology import Layout
from megatron_poro.training.microbatches import training_microbatches, validation_microbatches
from megatron_poro.training.resume import check_resume
from megatron_poro.training.signals import StopRequest


@dataclass
class Trainer:
    """What one rank holds while it trains."""

    config: RunConfig
    duration: Duration
    layout: Layout
    data: TrainingData
    chunks: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    sinks: SinkGroup
    is_first: bool
    data_rank: int
    state: TrainState
    source: dict[str, Any]
    stop: StopRequest


def train(config: RunConfig, world: World, layout: Layout, platform: Platform, *, last_step: int) -> bool:
    """Train until `last_step` steps of the run are done; False when a signal ended it sooner. Every rank must call it."""
    stop = StopRequest()
    stop.listen()
    start_groups(world, layout, platform)
    run_directory = Path(config.run_directory)
    chunks = build_model(config, layout, platform)
    trainer = Trainer(
        config=config,
        duration=duration_of(config),
        layout=layout,
        data=TrainingData(config.data),
        chunks=chunks,
        optimizer=build_optimizer(config, chunks),
        sinks=open_sinks(config.observe, run_directory, to_plain(config)) if world.rank == 0 else SinkGroup([]),
        is_first=world.rank == 0,
        data_rank=parallel_state.get_data_parallel_rank(),
        state=TrainState(),
        source={},
        stop=stop,
    )
    phases.watch_model(chunks)
    _start_or_resume(trainer)
    reached = _run_steps(trainer, last_step)
    phases.enter(Phase.ENDING)
    _write(trainer, "end")
    trainer.sinks.close()
    trainer.data.close()
    stop_groups()
    return reached


def _start_or_resume(trainer: Trainer) -> None:
    """Load the newest checkpoint of the run, or the initial weights, and say which."""
    phases.enter(Phase.LOADING)
    config = trainer.config
    found = list_checkpoints(Path(config.run_directory))
    if found:
        saved = read_state(found[-1])
        check_resume(config, found[-1], saved["data"], trainer.data.fingerprint())
        trainer.state = checkpoints.load_training(found[-1], trainer.chunks, trainer.optimizer)
    elif config.checkpoint.initial != RANDOM:
        checkpoints.load_weights(Path(config.checkpoint.initial), config.model, trainer.chunks, trainer.optimizer)
    phases.resume_at(trainer.state.step)
    origin = str(found[-1] if found else config.checkpoint.initial)
    trainer.source = checkpoints.read_source(origin)
    if trainer.is_first:
        save_run(config, Path(config.run_directory) / "config.toml")
        precision, steps = config.training.precision, trainer.duration.num_steps
        print(f"training {trainer.layout} in {precision} from {origin}, step {trainer.state.step} of {steps}", flush=True)
    _write(trainer, "start", origin=origin, layout=str(trainer.layout), versions=versions())
    if not found:
        _validate(trainer)


def _run_steps(trainer: Trainer, last_step: int) -> bool:
    """Step until `last_step` or until a rank is asked to stop, and save; True when the last step was reached."""
    every = trainer.config.checkpoint.save_every_steps
    todo = max(last_step - trainer.state.step, 0)
    with _step_progress(trainer, todo) as advance:
        stopped = False
        while trainer.state.step < last_step and not stopped:
            stopped = _take_step(trainer).stop
            step = trainer.state.step
            if is_validated(step, trainer.duration.num_steps, trainer.config.training):
                _validate(trainer)
            if every and step % every == 0:
                _save(trainer)
            advance(1)
    if not checkpoint_path(Path(trainer.config.run_directory), trainer.state.step).exists():
        _save(trainer)
    return trainer.state.step >= last_step


def _take_step(trainer: Trainer) -> StepResult:
    """One optimizer step, and its line of metrics."""
    config, before = trainer.config, trainer.state
    started = time.monotonic()
    phases.begin_step(before.step + 1)
    rate = learning_rate(before.step, trainer.duration, config.optimizer)
    set_learning_rate(trainer.optimizer, rate, config.optimizer.weight_decay)
    count = trainer.duration.batch_size(before.step)
    microbatches = training_microbatches(
        config, trainer.data, trainer.layout, first=before.samples, count=count, data_rank=trainer.data_rank
    )
    result = train_step(trainer.chunks, trainer.optimizer, microbatches, stop=trainer.stop.is_made)
    samples, batch_tokens = before.samples + count, count * config.data.sequence_length
    if not (math.isfinite(result.loss) and math.isfinite(result.gradient_norm)):
        raise TrainingError(
            f"step {before.step + 1}: loss {result.loss}, gradient norm {result.gradient_norm}; nothing of it was saved. "
            f"Lower optimizer.learning_rate, or look at samples {before.samples} to {samples - 1}"
        )
    trainer.state = TrainState(before.step + 1, samples, before.tokens + batch_tokens)
    seconds = time.monotonic() - started
    phases.end_step(seconds)
    if trainer.state.step % config.observe.log_every_steps == 0:
        _log_step(trainer, result, rate, batch_tokens=batch_tokens, seconds=seconds)
    return result


def _log_step(trainer: Trainer, result: StepResult, rate: float, *, batch_tokens: int, seconds: float) -> None:
    _write(
        trainer,
        "step",
        loss=result.loss,
        gradient_norm=result.gradient_norm,
        learning_rate=rate,
        updated=result.updated,
        samples=trainer.state.samples,
        tokens=trainer.state.tokens,
        seconds=seconds,
        tokens_per_second=batch_tokens / seconds,
    )
    if trainer.is_first and not sys.stderr.isatty():
        print(
            f"step {trainer.state.step}/{trainer.duration.num_steps}  loss {result.loss:.5f}  "
            f"gradient norm {result.gradient_norm:.4f}  rate {rate:.3g}  {batch_tokens / seconds:,.0f} tokens/s",
            flush=True,
        )


def is_validated(step: int, num_steps: int, training: TrainingConfig) -> bool:
    """Whether the held-out sets are read after `step` steps of the run's `num_steps`."""
    every = training.validate_every_steps
    return step == num_steps or step in training.validate_at_steps or bool(every and step % every == 0)


def _validate(trainer: Trainer) -> None:
    """The loss of every held-out set, and its perplexity: how many tokens the model is torn between on average."""
    phases.enter(Phase.VALIDATION)
    losses = {
        name: evaluate(
            trainer.chunks,
            validation_microbatches(trainer.config, held_out, trainer.layout, data_rank=trainer.data_rank),
        )
        for name, held_out in trainer.data.validation.items()
    }
    if losses:
        perplexities = {name: perplexity(loss) for name, loss in losses.items()}
        _write(trainer, "validation", losses=losses, perplexities=perplexities)
        if trainer.is_first:
            listed = "  ".join(f"{name} {loss:.5f} (perplexity {perplexities[name]:.4g})" for name, loss in losses.items())
            print(f"validation at step {trainer.state.step}:  {listed}", flush=True)


def perplexity(loss: float) -> float:
    """e to the loss; infinite where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _save(trainer: Trainer) -> None:
    """Save a checkpoint with its ledger, and drop the oldest."""
    phases.enter(Phase.SAVING)
    config = trainer.config
    ledger = ledger_at(trainer.data.order, trainer.state.samples).as_dict()
    extra = {"ledger": ledger, "data": trainer.data.fingerprint(), "layout": str(trainer.layout), "versions": versions()}
    path = checkpoints.save_checkpoint(config, trainer.state, trainer.chunks, trainer.optimizer, source=trainer.source, extra=extra)
    _write(trainer, "checkpoint", path=str(path), ledger=ledger)
    if trainer.is_first:
        print(f"saved {path}", flush=True)
        checkpoints.remove_old_checkpoints(Path(config.run_directory), config.checkpoint.keep_last)


def _write(trainer: Trainer, event: str, **values: Any) -> None:
    trainer.sinks.write({"event": event, "step": trainer.state.step, "time": time.time(), **values})


def _step_progress(trainer: Trainer, num_steps: int) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    if not trainer.is_first:
        return contextlib.nullcontext(lambda amount: None)
    return progress("training", num_steps, "steps")


def versions() -> dict[str, str]:
    """Versions of what computed the weights."""
    from megatron.core import __version__ as megatron_version

    return {"megatron_poro": __version__, "megatron_core": megatron_version, "torch": torch.__version__}
