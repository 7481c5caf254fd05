"""The training loop of one rank: start or resume, then step, log, validate and save until the run is done or told to stop."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from megatron.core import parallel_state

from data_indexing.progress import progress
from megatron_poro.config import RANDOM, DataConfig, RunConfig, TrainingConfig, save_run
from megatron_poro.config.duration import duration_of
from megatron_poro.config.parse import to_plain
from megatron_poro.data import TrainingData, look_up_eod
from megatron_poro.engine import phases
from megatron_poro.engine.checkpoint import load_weights, read_source
from megatron_poro.engine.groups import start_groups, stop_groups
from megatron_poro.engine.heartbeat import HEARTBEATS
from megatron_poro.engine.launch import World, job_of
from megatron_poro.engine.model import build_model, check_context
from megatron_poro.engine.norms import parameter_norm
from megatron_poro.engine.optimizer import build_optimizer, set_learning_rate
from megatron_poro.engine.phases import Phase
from megatron_poro.engine.platform import Platform
from megatron_poro.engine.saving import CheckpointSaver
from megatron_poro.engine.schedule import learning_rate
from megatron_poro.engine.step import StepResult, evaluate, train_step
from megatron_poro.errors import STOPPED_CODE
from megatron_poro.observe import SinkGroup, open_sinks
from megatron_poro.topology import Layout
from megatron_poro.training.compare import RankComparison
from megatron_poro.training.failures import load_start
from megatron_poro.training.measures import StepMeasures
from megatron_poro.training.microbatches import training_microbatches, validation_microbatches
from megatron_poro.training.monitor import StepMonitor
from megatron_poro.training.recovery import report_bad_step, resume, roll_back
from megatron_poro.training.saves import SaveNews
from megatron_poro.training.signals import SAVE, STOP, Requests
from megatron_poro.training.state import TrainState
from megatron_poro.training.trainer import Trainer

NUM_WISHES = 3
"""Votes of a rank in a step: to stop, to save, that it still writes. The others are its measures."""


def train(config: RunConfig, world: World, layout: Layout, platform: Platform, *, requests: Requests, last_step: int) -> bool:
    """Train until `last_step` steps of the run are done; False when `requests` ended it sooner. Every rank must call it."""
    check_context(layout, platform)
    config = replace(config, data=look_up_eod(config.data))
    run_directory = Path(config.run_directory)
    start_groups(world, layout, platform)
    chunks = build_model(config, layout, platform)
    optimizer = build_optimizer(config, chunks)
    sinks = open_sinks(config.observe, run_directory, to_plain(config)) if world.rank == 0 else SinkGroup([])
    trainer = Trainer(
        config=config,
        duration=duration_of(config),
        layout=layout,
        data=TrainingData(config.data),
        chunks=chunks,
        optimizer=optimizer,
        sinks=sinks,
        is_first=world.rank == 0,
        data_rank=parallel_state.get_data_parallel_rank(),
        saver=CheckpointSaver(config, chunks, optimizer, platform=platform, listener=SaveNews(config, sinks)),
        requests=requests,
        monitor=StepMonitor(config.faults),
        comparison=RankComparison(config.faults, layout, platform, chunks),
        measures=StepMeasures(config, platform, rank=world.rank, world_size=world.size),
    )
    phases.watch_model(chunks)
    _start_or_resume(trainer)
    reached = _run_steps(trainer, last_step)
    phases.enter(Phase.ENDING)
    trainer.saver.close()
    asked_by = "" if reached else requests.reason or "another rank"
    if trainer.is_first and asked_by:
        where = f"step {trainer.state.step} of {trainer.duration.num_steps}"
        print(f"stopped by {asked_by} at {where}; the same command goes on (exit code {STOPPED_CODE})", flush=True)
    trainer.write("end", stopped_by=asked_by)
    trainer.sinks.close()
    trainer.data.close()
    stop_groups()
    return reached


def _start_or_resume(trainer: Trainer) -> None:
    """Load the newest whole checkpoint of the run, or the initial weights, and say which."""
    phases.enter(Phase.LOADING)
    started = time.monotonic()
    config = trainer.config
    found = resume(trainer)
    if not found and config.checkpoint.initial != RANDOM:
        load_weights(Path(config.checkpoint.initial), config.model, trainer.chunks, trainer.optimizer)
    origin = str(found or config.checkpoint.initial)
    trainer.source = read_source(origin)
    if trainer.is_first:
        try:
            save_run(config, trainer.run_directory / "config.toml")
        except OSError as error:
            print(f"warning: {trainer.run_directory / 'config.toml'}: {error.strerror}", file=sys.stderr)
        precision, steps = config.training.precision, trainer.duration.num_steps
        print(f"training {trainer.layout} in {precision} from {origin}, step {trainer.state.step} of {steps}", flush=True)
    start, (job, restart) = load_start(Path(os.environ[HEARTBEATS])), job_of(os.environ)
    seconds = time.monotonic() - started
    trainer.write_start(origin, start=start.name, began=start.began, load_seconds=seconds, job=job, restart=restart)
    if not found:
        _validate(trainer)


def _run_steps(trainer: Trainer, last_step: int) -> bool:
    """Step until `last_step` or until a rank is asked to stop, and save; True when the last step was reached."""
    stopped, first = False, trainer.state.step
    with _step_progress(trainer, max(last_step - trainer.state.step, 0)) as advance:
        while trainer.state.step < last_step and not stopped:
            before = trainer.state.step
            result = _take_step(trainer)
            for record in trainer.comparison.after_step(trainer.state.step):
                trainer.write(**record)
            stopped = _heed(trainer, result)
            step = trainer.state.step
            if step > before and is_validated(step, trainer.duration.num_steps, trainer.config.training):
                _validate(trainer)
            advance(step - before)
    if trainer.last_saved != trainer.state.step:
        trainer.save()
    elif trainer.is_first and not first < last_step:
        print(f"nothing to do: the run is at step {first} already", flush=True)
    return trainer.state.step >= last_step


def _take_step(trainer: Trainer) -> StepResult:
    """One optimizer step, and its line of metrics."""
    config, before, requests = trainer.config, trainer.state, trainer.requests
    started = time.monotonic()
    phases.begin_step(before.step + 1)
    rate = learning_rate(before.step, trainer.duration, config.optimizer)
    set_learning_rate(trainer.optimizer, rate, config.optimizer.weight_decay)
    count = trainer.duration.batch_size(before.step)
    runs = trainer.windows.take(before.samples, count)
    microbatches = training_microbatches(config, trainer.data, trainer.layout, runs=runs, data_rank=trainer.data_rank)
    data_seconds = time.monotonic() - started
    requests.look()
    reason = ""

    def may_update(loss: float, gradient_norm: float) -> bool:
        nonlocal reason
        reason = trainer.monitor.judge(loss, gradient_norm, position=before.samples)
        trainer.saver.wait_for_copy()
        return not reason

    wishes = (requests.stop, requests.save, trainer.saver.unfinished)
    result = train_step(
        trainer.chunks,
        trainer.optimizer,
        microbatches,
        num_sources=len(config.data.sources),
        votes=(*wishes, *trainer.measures.own(data_seconds)),
        may_update=may_update,
    )
    batch_tokens = count * config.data.sequence_length
    trainer.state = TrainState(before.step + 1, runs[-1].stop, before.tokens + batch_tokens, before.updates + result.updated)
    seconds = time.monotonic() - started
    phases.end_step(seconds)
    norms = _norms(trainer)
    if norms or reason or _is_due(trainer.state.step, config.observe.log_every_steps):
        _log_step(trainer, result, rate, tokens=batch_tokens, seconds=seconds, norms=norms)
    if _mix_changes(config.data, before.samples, runs[-1].stop):
        trainer.monitor.forget()
    if reason:
        report_bad_step(trainer, reason, runs=runs)
    return result


def _mix_changes(data: DataConfig, first: int, stop: int) -> bool:
    """Whether a stage begins after sample `first` and by sample `stop`: from there on other losses are usual."""
    return any(first < stage.from_tokens // data.sequence_length <= stop for stage in data.stages)


def _heed(trainer: Trainer, result: StepResult) -> bool:
    """Roll back or save where it is due or asked for; True when the run is to end. All ranks see the same votes."""
    stop, save, unfinished = (count > 0 for count in result.votes[:NUM_WISHES])
    if trainer.saver.is_saving and not unfinished:
        trainer.saver.finish()
    rollback_after, num_bad = trainer.config.faults.rollback_after, trainer.monitor.bad_steps
    if rollback_after and num_bad >= rollback_after:
        roll_back(trainer)
    elif save or (not num_bad and _is_due(trainer.state.step, trainer.config.checkpoint.save_every_steps)):
        trainer.save()
    for name, is_asked in ((SAVE, save), (STOP, stop)):
        if is_asked:
            trainer.requests.clear(name)
    return stop


def is_validated(step: int, num_steps: int, training: TrainingConfig) -> bool:
    """Whether the held-out sets are read after `step` steps of the run's `num_steps`."""
    every = training.validate_every_steps
    return step == num_steps or step in training.validate_at_steps or bool(every and step % every == 0)


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _norms(trainer: Trainer) -> dict[str, float]:
    """The norm of the weights where it is due."""
    if not _is_due(trainer.state.step, trainer.config.observe.parameter_norm_every_steps):
        return {}
    phases.enter(Phase.CHECKING)
    return {"parameter_norm": parameter_norm(trainer.chunks)}


def _log_step(trainer: Trainer, result: StepResult, rate: float, *, tokens: int, seconds: float, norms: dict[str, float]) -> None:
    if not trainer.is_first:
        return
    by_source = zip(trainer.data.order.names, result.losses, strict=True)
    of_ranks = result.votes[NUM_WISHES:]
    trainer.write(
        "step",
        loss=result.loss,
        perplexity=perplexity(result.loss),
        gradient_norm=result.gradient_norm,
        learning_rate=rate,
        updated=result.updated,
        samples=trainer.state.samples,
        tokens=trainer.state.tokens,
        losses={name: loss for name, loss in by_source if loss is not None},
        source_tokens={entry.name: entry.tokens for entry in trainer.ledger().sources},
        **trainer.measures.of_step(of_ranks, tokens=tokens, seconds=seconds, stalled=trainer.saver.stall_seconds),
        **norms,
    )
    if not sys.stderr.isatty():
        print(
            f"step {trainer.state.step}/{trainer.duration.num_steps}  loss {result.loss:.5f}  "
            f"gradient norm {result.gradient_norm:.4f}  rate {rate:.3g}  {tokens / seconds:,.0f} tokens/s",
            flush=True,
        )


def _validate(trainer: Trainer) -> None:
    """The loss of every held-out set."""
    phases.enter(Phase.VALIDATION)
    started = time.monotonic()
    losses = {
        name: evaluate(
            trainer.chunks,
            validation_microbatches(trainer.config, held_out, trainer.layout, data_rank=trainer.data_rank),
        )
        for name, held_out in trainer.data.validation.items()
    }
    if losses:
        perplexities = {name: perplexity(loss) for name, loss in losses.items()}
        trainer.write("validation", losses=losses, perplexities=perplexities, seconds=time.monotonic() - started)
        if trainer.is_first:
            listed = "  ".join(f"{name} {loss:.5f} (perplexity {perplexities[name]:.4g})" for name, loss in losses.items())
            print(f"validation at step {trainer.state.step}:  {listed}", flush=True)


def perplexity(loss: float) -> float:
    """e to the loss; infinite where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _step_progress(trainer: Trainer, num_steps: int) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    if not trainer.is_first:
        return contextlib.nullcontext(lambda amount: None)
    return progress("training", num_steps, "steps")
