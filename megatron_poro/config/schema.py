"""What a run file may say: every section and key with its unit, its meaning at the extremes, and who reads it.

Frozen and strict: an unknown key, a wrong type or a value out of range is an error (`load.py`, `validate.py`). The help texts are
the reference that `poro train --help` prints.
"""

from dataclasses import dataclass, field, fields
from typing import Any


def setting(help: str, *, default: Any = None, path: bool = False, choices: tuple[str, ...] = ()) -> Any:
    """A config field with its help; a `path` is taken relative to the run file. Without a default the key is required."""
    metadata = {"help": help, "path": path, "choices": choices}
    if default is None:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A Llama: grouped-query attention, RMSNorm, SwiGLU, rotary positions. Read by engine, conversion and planning."""

    shape: str = setting("preset that fills the keys below (`llama3.1-8b`, `tiny`, ...); keys given here win", default="")
    num_layers: int = setting("transformer layers")
    hidden_size: int = setting("width of the residual stream, in numbers")
    ffn_hidden_size: int = setting("width inside the feed-forward block, in numbers")
    num_attention_heads: int = setting("query heads")
    num_key_value_heads: int = setting("key/value heads; equal to the query heads means no grouping")
    head_dim: int = setting("numbers per head; 0 means hidden_size / num_attention_heads", default=0)
    vocab_size: int = setting("token ids of the tokenizer, unpadded")
    max_position_embeddings: int = setting("longest sequence the model claims, in tokens; written to exports", default=131072)
    norm_epsilon: float = setting("added to the mean square in RMSNorm", default=1e-5)
    rope_theta: float = setting("base of the rotary frequencies", default=500000.0)
    rope_scaling_factor: float = setting("llama3 frequency scaling; 1 means none", default=1.0)
    rope_low_freq_factor: float = setting("llama3 scaling: wavelengths above original length / this are scaled", default=1.0)
    rope_high_freq_factor: float = setting("llama3 scaling: wavelengths below original length / this are kept", default=4.0)
    rope_original_length: int = setting("llama3 scaling: sequence length before scaling, in tokens", default=8192)
    tied_embeddings: bool = setting("output layer shares the embedding's weights", default=False)
    initializer_std: float = setting("standard deviation of random initial weights", default=0.02)


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the model is cut over processes. Read by topology and engine."""

    tensor: int = setting("processes that share each layer's matrices; 1 means none", default=1)
    pipeline: int = setting("stages that share the layers; 1 means none", default=1)
    data: int = setting(
        "copies of the model that share a batch; 0 means as many as the processes allow (1 without a launcher)", default=0
    )
    virtual_stages: int = setting("model chunks per stage (interleaved schedule); 1 means none", default=1)
    sequence: bool = setting("split norms and residuals along the sequence inside a tensor group", default=False)
    context: int = setting("processes that share each sequence; above 1 accelerators need Transformer Engine for it", default=1)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of training text. Read by data."""

    name: str = setting("name in ledger, metrics and stages")
    path: str = setting("prefix of the .bin/.idx pair", path=True)
    weight: float = setting("share of the samples, relative to the other sources; 0 means held back until a stage names it")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A new mix from a point of the run on. Read by data."""

    from_tokens: int = setting("training tokens after which this mix holds; a multiple of data.sequence_length")
    weights: dict[str, float] = setting("source name -> share of the samples; a source not named gets none")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """One held-out set: a pair of its own, or the last sequences of a source, which training then never sees. Read by data."""

    name: str = setting("name in metrics")
    path: str = setting("prefix of a .bin/.idx pair; empty when `source` is given", default="", path=True)
    source: str = setting("source to hold out from; empty when `path` is given", default="")
    last_sequences: int = setting("sequences held out at the end of `source`, before shuffling", default=0)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, in which shares. Read by data."""

    sequence_length: int = setting("tokens per sample")
    seed: int = setting("seed of the sample order", default=1234)
    sources: tuple[SourceConfig, ...] = setting("training sources, one [[data.sources]] table each")
    stages: tuple[StageConfig, ...] = setting("later mixes, one [[data.stages]] table each", default=())
    reset_attention_mask: bool = setting("no token attends to an earlier document of its sequence", default=False)
    reset_position_ids: bool = setting("positions start again at each document of a sequence", default=False)
    eod_token_id: int = setting(
        "token that ends a document, for the two keys above; -1 takes it from the sources' manifests", default=-1
    )
    validation: tuple[ValidationConfig, ...] = setting("held-out sets, one [[data.validation]] table each", default=())


@dataclass(frozen=True, kw_only=True)
class RampConfig:
    """A new batch size from a point of the run on. Read by training."""

    from_tokens: int = setting("training tokens after which the next step has this batch size")
    global_batch_size: int = setting("samples per step over all processes from then on")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long and in which numbers. Read by training and engine."""

    steps: int = setting("optimizer steps of the whole run; 0 when `tokens` says how long it is", default=0)
    tokens: int = setting("tokens of the whole run, instead of `steps`; the last step reaches them or passes them", default=0)
    global_batch_size: int = setting("samples per step over all processes")
    batch_ramp: tuple[RampConfig, ...] = setting("later batch sizes, one [[training.batch_ramp]] table each", default=())
    micro_batch_size: int = setting("samples per forward-backward on one model copy", default=1)
    precision: str = setting("bf16 (fp32 master weights and gradients) or fp32", default="bf16", choices=("bf16", "fp32"))
    recompute: str = setting(
        "activations computed again in the backward pass instead of kept: none, selective (attention) or full (whole layers)",
        default="none",
        choices=("none", "selective", "full"),
    )
    seed: int = setting("seed of random initial weights", default=1234)
    validate_every_steps: int = setting(
        "steps between validations; 0 means only before the first and after the last step", default=0
    )
    validate_at_steps: tuple[int, ...] = setting("further steps after which to validate", default=())
    validation_samples: int = setting("samples of each held-out set used; 0 means all", default=0)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule. Read by engine."""

    learning_rate: float = setting("peak learning rate, reached at the end of the warm-up")
    final_learning_rate: float = setting("learning rate at the last step", default=0.0)
    schedule: str = setting(
        "course after the warm-up; wsd (warm-up, stable, decay) stays at the peak until the decay at the end",
        default="cosine",
        choices=("cosine", "linear", "wsd", "constant"),
    )
    warmup_fraction: float = setting("share of the run spent rising from 0; 0 means none", default=0.0)
    warmup_steps: int = setting("the same in steps, instead", default=0)
    warmup_tokens: int = setting("the same in tokens, instead", default=0)
    decay_fraction: float = setting("wsd: share of the run spent falling to the final rate", default=0.0)
    decay_steps: int = setting("the same in steps, instead", default=0)
    decay_tokens: int = setting("the same in tokens, instead", default=0)
    decay_shape: str = setting("wsd: course of the decay", default="linear", choices=("linear", "cosine", "sqrt"))
    adam_beta1: float = setting("decay of the first moment", default=0.9)
    adam_beta2: float = setting("decay of the second moment", default=0.95)
    adam_epsilon: float = setting("added to the root of the second moment", default=1e-8)
    weight_decay: float = setting("decoupled decay of matrices; norms are never decayed", default=0.1)
    clip_gradient_norm: float = setting("gradients are scaled down to this global norm; 0 means never", default=1.0)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Where the run starts from and what it saves. Read by engine and training."""

    initial: str = setting(
        "Megatron checkpoint to start from (`poro convert to-megatron`), or `random` for random weights", path=True
    )
    save_every_steps: int = setting(
        "steps between checkpoints; 0 means only at the end, at --stop-after and when a signal stops the run", default=0
    )
    keep_last: int = setting("newest checkpoints kept; 0 means all", default=0)
    keep_every_steps: int = setting("checkpoints of these steps are kept for ever; 0 means none", default=0)
    asynchronous: bool = setting("training goes on while a checkpoint is written from a copy in host memory", default=True)
    allow_changed: tuple[str, ...] = setting('keys that a resume may find changed, e.g. ["optimizer.learning_rate"]', default=())


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """What is done about bad batches, hangs, slow ranks and silent corruption. Read by training."""

    skip_bad_steps: bool = setting(
        "leave out the update of a step whose loss or gradient norm is not finite or spikes", default=True
    )
    spike_deviations: float = setting(
        "a spike is this many standard deviations above the mean of the window; 0 means only what is not finite is bad", default=6.0
    )
    spike_window: int = setting("good steps before this one that mean and deviation are taken over", default=128)
    rollback_after: int = setting(
        "bad steps in a row after which the run goes back to a checkpoint and leaves out their samples; 0 means never", default=8
    )
    hang_factor: float = setting(
        "a rank silent for this many times the slowest of its last 50 steps (and hang_least_seconds) hangs; 0 means never",
        default=10.0,
    )
    hang_least_seconds: float = setting("least silence that counts as a hang", default=120.0)
    hang_other_seconds: float = setting(
        "silence that counts as a hang before the first step and outside of steps: start-up, loading, saving", default=1800.0
    )
    straggler_percent: float = setting("a rank slower than the median by this is named; 0 means none", default=20.0)
    straggler_every_steps: int = setting("steps between comparisons of the ranks' times; 0 means never", default=100)
    weight_hash_every_steps: int = setting(
        "steps between comparisons of the weights of data-parallel copies; 0 means never", default=500
    )


@dataclass(frozen=True, kw_only=True)
class ObserveConfig:
    """What is shown. Read by observe."""

    log_every_steps: int = setting("steps between lines of metrics", default=1)
    parameter_norm_every_steps: int = setting("steps between norms of all weights; 0 means never", default=100)
    wandb_project: str = setting(
        "wandb project; empty means no wandb. In a Slurm job it is offline unless WANDB_MODE says otherwise", default=""
    )
    wandb_entity: str = setting("wandb team or user; empty means the account's default", default="")
    tensorboard: bool = setting("event files for TensorBoard in the run directory", default=False)


@dataclass(frozen=True, kw_only=True)
class ChecksConfig:
    """What `poro check` finds and is meant. Read by preflight."""

    allow: tuple[str, ...] = setting('checks whose findings are meant, e.g. ["mix.epochs"]; they count as green', default=())


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Supervised fine-tuning after the run. Read by post-training."""

    epochs: int = setting("passes over the samples")
    global_batch_size: int = setting("packed sequences per step")
    learning_rate: float = setting("peak learning rate")
    schedule: str = setting("course after the warm-up", default="linear", choices=("cosine", "linear", "constant"))
    warmup_fraction: float = setting("share of the steps spent rising from 0", default=0.03)
    sequence_length: int = setting("tokens per sequence", default=4096)
    packing: bool = setting("several samples share a sequence", default=True)


@dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """Direct preference optimisation after SFT. Read by post-training."""

    epochs: int = setting("passes over the pairs")
    global_batch_size: int = setting("pairs per step")
    beta: float = setting("weight of the reference model; larger stays closer to it")
    learning_rate: float = setting("peak learning rate")
    schedule: str = setting("course after the warm-up", default="cosine", choices=("cosine", "linear", "constant"))
    warmup_fraction: float = setting("share of the steps spent rising from 0", default=0.1)
    sequence_length: int = setting("tokens per sequence", default=4096)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run file, resolved: presets, file and overrides merged."""

    recipe: str = setting("preset of whole sections (`poro2-8b`, `poro2-70b`); keys given here win", default="")
    run_directory: str = setting("where checkpoints, metrics and logs of the run lie", path=True)
    model: ModelConfig = setting("the model's shape")
    parallel: ParallelConfig = setting("the layout", default=ParallelConfig())
    data: DataConfig = setting("the text")
    training: TrainingConfig = setting("duration and precision")
    optimizer: OptimizerConfig = setting("AdamW and its schedule")
    checkpoint: CheckpointConfig = setting("start and saves")
    faults: FaultsConfig = setting("bad batches, hangs, slow ranks, corruption", default=FaultsConfig())
    observe: ObserveConfig = setting("metrics", default=ObserveConfig())
    checks: ChecksConfig = setting("what `poro check` finds and is meant", default=ChecksConfig())
    sft: SftConfig | None = field(
        default=None, metadata={"help": "supervised fine-tuning; recorded, `poro train` does not read it"}
    )
    dpo: DpoConfig | None = field(
        default=None, metadata={"help": "preference optimisation; recorded, `poro train` does not read it"}
    )


RANDOM = "random"
"""The value of checkpoint.initial that stands for random weights."""


def head_dim(model: ModelConfig) -> int:
    """Numbers per attention head."""
    return model.head_dim or model.hidden_size // model.num_attention_heads


def help_of(section: type, key: str) -> str:
    """The help text of a section's key."""
    return next(str(f.metadata["help"]) for f in fields(section) if f.name == key)
