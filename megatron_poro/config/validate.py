"""Rules that hold between the values of a run file; each problem is one line with the full key, the numbers and the way out."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from megatron_poro.config.data_rules import find_data_problems
from megatron_poro.config.duration_rules import find_batch_problems, find_duration_problems, find_schedule_problems
from megatron_poro.config.schema import DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, RunConfig, head_dim
from megatron_poro.topology import Layout

NON_NEGATIVE = {
    "head_dim", "data", "validate_every_steps", "validation_samples", "save_every_steps", "keep_last", "final_learning_rate",
    "warmup_fraction", "weight_decay", "clip_gradient_norm", "adam_beta1", "adam_beta2", "seed", "initializer_std",
    "steps", "tokens", "warmup_steps", "warmup_tokens", "decay_fraction", "decay_steps", "decay_tokens", "keep_every_steps",
    "spike_deviations", "rollback_after", "hang_factor", "straggler_percent", "straggler_every_steps", "weight_hash_every_steps",
}  # fmt: skip
"""Keys that may be 0; every other number must be positive."""


LARGEST = 2**63
MOST = {"num_layers": 10_000}
"""Keys with a limit of their own: far above what is built, and small enough to go through one by one."""
NUMBERED = ("model", "parallel", "training", "optimizer", "checkpoint", "faults", "observe")


def find_problems(config: RunConfig) -> list[str]:
    """Every broken rule of `config`."""
    bad_numbers = [problem for name in NUMBERED for problem in find_bad_numbers(getattr(config, name), name)]
    if bad_numbers:
        return [*bad_numbers, *find_data_problems(config.data)]
    return [
        *_find_run_problems(config),
        *_find_layout_problems(config.model, config.parallel),
        *_find_length_problems(config),
        *find_data_problems(config.data),
        *_find_optimizer_problems(config.optimizer),
    ]


def find_bad_numbers(section: Any, name: str) -> list[str]:
    """Numbers of a section that are below their least value, not finite, or absurdly large."""
    problems = []
    for f in fields(section):
        value = getattr(section, f.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        least_ok = value >= 0 if f.name in NON_NEGATIVE else value > 0
        most = MOST.get(f.name, LARGEST)
        if not least_ok or not abs(value) < most:
            least = "at least" if f.name in NON_NEGATIVE else "above"
            problems.append(f"{name}.{f.name}: {value} is out of range; it must be {least} 0 and below {most}")
    return problems


def _find_run_problems(config: RunConfig) -> Iterator[str]:
    if not config.run_directory or "\0" in config.run_directory:
        yield "run_directory: empty or no path; name a folder"
    if config.data.eod_token_id >= config.model.vocab_size:
        yield f"data.eod_token_id ({config.data.eod_token_id}) is beyond model.vocab_size ({config.model.vocab_size})"
    if config.data.sequence_length > config.model.max_position_embeddings:
        yield (
            f"data.sequence_length ({config.data.sequence_length}) is above model.max_position_embeddings "
            f"({config.model.max_position_embeddings}); raise the latter if the model is meant to read so far"
        )


def _find_layout_problems(model: ModelConfig, parallel: ParallelConfig) -> Iterator[str]:
    tensor = parallel.tensor
    for key in ("num_attention_heads", "num_key_value_heads", "ffn_hidden_size"):
        value = getattr(model, key)
        if value % tensor:
            yield f"parallel.tensor ({tensor}) does not divide model.{key} ({value}); choose a divisor of {value}"
    if model.num_attention_heads % model.num_key_value_heads:
        yield (
            f"model.num_key_value_heads ({model.num_key_value_heads}) does not divide model.num_attention_heads "
            f"({model.num_attention_heads}); each key/value head serves the same number of query heads"
        )
    if not model.head_dim and model.hidden_size % model.num_attention_heads:
        yield (
            f"model.num_attention_heads ({model.num_attention_heads}) does not divide model.hidden_size "
            f"({model.hidden_size}); set model.head_dim"
        )
    elif head_dim(model) % 2:
        yield f"model.head_dim ({head_dim(model)}) is odd; rotary positions turn pairs of numbers"
    chunks = parallel.pipeline * parallel.virtual_stages
    if model.num_layers % chunks:
        yield (
            f"parallel.pipeline ({parallel.pipeline}) x parallel.virtual_stages ({parallel.virtual_stages}) = {chunks} does "
            f"not divide model.num_layers ({model.num_layers}); choose a divisor of {model.num_layers}"
        )
    if parallel.virtual_stages > 1 and parallel.pipeline == 1:
        yield f"parallel.virtual_stages ({parallel.virtual_stages}) needs parallel.pipeline above 1"
    if parallel.sequence and tensor == 1:
        yield "parallel.sequence (true) needs parallel.tensor above 1; leave it out"


def _find_batch_problems(config: RunConfig) -> Iterator[str]:
    parallel = config.parallel
    layout = Layout(parallel.tensor, parallel.pipeline, max(parallel.data, 1), parallel.virtual_stages, parallel.context)
    yield from find_batch_problems(config.training, layout)
    yield from _find_sequence_problems(config.data, parallel)


def _find_sequence_problems(data: DataConfig, parallel: ParallelConfig) -> Iterator[str]:
    """Sequences that cannot be cut as the layout cuts them."""
    length, tensor, context = data.sequence_length, parallel.tensor, parallel.context
    if context > 1 and length % (2 * context):
        yield f"data.sequence_length ({length}) is not a multiple of 2 x parallel.context ({context}) = {2 * context}"
    elif parallel.sequence and length // context % tensor:
        shared = f" / parallel.context ({context}) = {length // context}" if context > 1 else ""
        yield f"data.sequence_length ({length}){shared} is not a multiple of parallel.tensor ({tensor})"
    if context > 1 and data.reset_attention_mask:
        yield (
            f"data.reset_attention_mask (true) and parallel.context ({context}): documents cannot be cut over processes; "
            "set one of them back"
        )


def _find_length_problems(config: RunConfig) -> Iterator[str]:
    """What is wrong with the run's length; batches and schedule are looked at only where it is known."""
    problems = list(find_duration_problems(config.training))
    yield from problems
    if not problems:
        yield from _find_batch_problems(config)
        if config.data.sequence_length > 0:
            yield from find_schedule_problems(config.optimizer, config.training, config.data.sequence_length)


def _find_optimizer_problems(optimizer: OptimizerConfig) -> Iterator[str]:
    if optimizer.final_learning_rate > optimizer.learning_rate:
        yield (
            f"optimizer.final_learning_rate ({optimizer.final_learning_rate}) is above optimizer.learning_rate "
            f"({optimizer.learning_rate})"
        )
    for key in ("adam_beta1", "adam_beta2"):
        if getattr(optimizer, key) >= 1:
            yield f"optimizer.{key} ({getattr(optimizer, key)}) must be below 1"
