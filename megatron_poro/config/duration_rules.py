"""What can be wrong with a run's length, batches and learning rate: one line a problem, with the key and the way out."""

from collections.abc import Iterator

from megatron_poro.config.duration import decay_units, plan_duration, warmup_units
from megatron_poro.config.schema import OptimizerConfig, TrainingConfig
from megatron_poro.topology import Layout


def find_duration_problems(training: TrainingConfig) -> Iterator[str]:
    """Contradictions of steps, tokens, batch_ramp and validate_at_steps."""
    if training.steps and training.tokens:
        yield (
            f"training.steps ({training.steps}) and training.tokens ({training.tokens}): one of them says how long the run is; "
            "set the other to 0"
        )
    elif not training.steps and not training.tokens:
        yield "training.steps and training.tokens: both 0; one of them says how long the run is"
    previous = 0
    for n, ramp in enumerate(training.batch_ramp):
        key = f"training.batch_ramp[{n}]"
        if ramp.from_tokens <= previous:
            yield f"{key}.from_tokens: {ramp.from_tokens} is not above {previous}, where the batch size before it starts"
        if ramp.global_batch_size < 1:
            yield f"{key}.global_batch_size: {ramp.global_batch_size} is out of range; it must be at least 1"
        previous = max(previous, ramp.from_tokens)
    for n, step in enumerate(training.validate_at_steps):
        if step < 1:
            yield f"training.validate_at_steps[{n}]: {step} is out of range; it must be at least 1"


def find_batch_problems(training: TrainingConfig, layout: Layout) -> Iterator[str]:
    """Batch sizes that do not divide over data ranks, micro-batches and, with virtual stages, pipeline stages."""
    share = training.micro_batch_size * layout.data
    sizes = {"training.global_batch_size": training.global_batch_size} | {
        f"training.batch_ramp[{n}].global_batch_size": ramp.global_batch_size for n, ramp in enumerate(training.batch_ramp)
    }
    for key, size in sizes.items():
        if size % share:
            yield (
                f"{key} ({size}) is not a multiple of training.micro_batch_size ({training.micro_batch_size}) x data ranks "
                f"({layout.data}) = {share}"
            )
        elif layout.virtual_stages > 1 and size // share % layout.pipeline:
            yield (
                f"{key} ({size}) gives {size // share} microbatches per data rank, not a multiple of parallel.pipeline "
                f"({layout.pipeline}) as parallel.virtual_stages needs"
            )


def find_schedule_problems(optimizer: OptimizerConfig, training: TrainingConfig, sequence_length: int) -> Iterator[str]:
    """Contradictions of warm-up, decay and the run's length; `training` itself must have none."""
    warmup = _given(optimizer, "warmup")
    if len(warmup) > 1:
        yield f"{_listed(warmup)}: give at most one of them, and set the others to 0"
    decay = _given(optimizer, "decay")
    if optimizer.schedule == "wsd" and len(decay) != 1:
        found = f"{_listed(decay)}: " if decay else ""
        yield f"optimizer.schedule (wsd): {found}give exactly one of optimizer.decay_fraction, decay_steps and decay_tokens"
    if optimizer.schedule != "wsd":
        decay |= {"optimizer.decay_shape": optimizer.decay_shape} if optimizer.decay_shape != "linear" else {}
        if decay:
            yield f"{_listed(decay)}: read by optimizer.schedule wsd alone, not by {optimizer.schedule}; leave it out"
    if optimizer.warmup_fraction >= 1:
        yield f"optimizer.warmup_fraction ({optimizer.warmup_fraction}) must be below 1"
    elif len(warmup) <= 1 and len(decay) <= 1:
        yield from _find_misfits(optimizer, training, sequence_length)


def _find_misfits(optimizer: OptimizerConfig, training: TrainingConfig, sequence_length: int) -> Iterator[str]:
    """Warm-up and decay that are longer than the run."""
    duration = plan_duration(training, sequence_length)
    run = f"the run, {duration.num_steps} steps of {duration.num_tokens} tokens in all"
    warmup, decay = _given(optimizer, "warmup"), _given(optimizer, "decay")
    rising = warmup_units(duration, optimizer)
    falling = decay_units(duration, optimizer) if optimizer.schedule == "wsd" else 0
    if rising > duration.num_units:
        yield f"{_listed(warmup)}: longer than {run}; take less"
    elif rising + falling > duration.num_units:
        yield f"{_listed(warmup | decay)}: together longer than {run}; take less"


def _given(optimizer: OptimizerConfig, part: str) -> dict[str, float | str]:
    """The keys of a part of the schedule that say how long it is."""
    keys = [f"{part}_{unit}" for unit in ("fraction", "steps", "tokens")]
    return {f"optimizer.{key}": getattr(optimizer, key) for key in keys if getattr(optimizer, key)}


def _listed(values: dict[str, float | str]) -> str:
    return ", ".join(f"{key} ({value})" for key, value in values.items())
