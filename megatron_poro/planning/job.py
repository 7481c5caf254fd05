"""What is planned: the model's shape, the layout, the batch, and how the program computes it."""

from dataclasses import dataclass, replace

from megatron_poro.config import ModelConfig, RunConfig, head_dim
from megatron_poro.topology import Layout


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder. `gated` means SwiGLU, three matrices in the feed-forward part instead of two."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    gated: bool = True
    tied: bool = False


@dataclass(frozen=True, kw_only=True)
class Method:
    """How the program computes it; the defaults are this project's engine and megatron-core with flash attention.

    `logit_bytes` is what cross-entropy keeps of each logit; `overlap_tensor` hides tensor communication behind products (user
    buffers of Transformer Engine), `overlap_data` the data axis' behind a microbatch.
    """

    recompute: str = "none"
    sequence_parallel: bool = True
    fused_attention: bool = True
    distributed_optimizer: bool = True
    gradient_bytes: int = 4
    logit_bytes: int = 6
    overlap_tensor: bool = False
    overlap_data: bool = True


@dataclass(frozen=True, kw_only=True)
class Job:
    """One optimizer step of a training job."""

    shape: Shape
    layout: Layout
    sequence_length: int
    micro_batch_size: int
    global_batch_size: int
    method: Method = Method()

    @property
    def num_microbatches(self) -> int:
        """Forward-backward passes of a step on one copy of the model."""
        return self.global_batch_size // (self.layout.data * self.micro_batch_size)

    @property
    def rank_tokens(self) -> int:
        """Tokens of a microbatch that a rank sees: its share on the context axis."""
        return self.micro_batch_size * self.sequence_length // self.layout.context

    @property
    def step_tokens(self) -> int:
        """Tokens of a step over all processes."""
        return self.global_batch_size * self.sequence_length


def shape_of(model: ModelConfig) -> Shape:
    """The shape of a run file's model."""
    return Shape(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_heads=model.num_attention_heads,
        num_kv_heads=model.num_key_value_heads,
        head_dim=head_dim(model),
        vocab_size=model.vocab_size,
        tied=model.tied_embeddings,
    )


def job_of(config: RunConfig, layout: Layout) -> Job:
    """A step of a run file on this layout, with the largest of its batches."""
    training = config.training
    batch = max([training.global_batch_size, *(ramp.global_batch_size for ramp in training.batch_ramp)])
    return Job(
        shape=shape_of(config.model),
        layout=layout,
        sequence_length=config.data.sequence_length,
        micro_batch_size=training.micro_batch_size,
        global_batch_size=batch,
        method=Method(recompute=training.recompute, sequence_parallel=config.parallel.sequence),
    )


def on_layout(job: Job, layout: Layout) -> Job:
    """The same job on another layout; sequence parallelism goes with the tensor axis."""
    return replace(job, layout=layout, method=replace(job.method, sequence_parallel=layout.tensor > 1))


def layers_of_stage(job: Job, stage: int) -> int:
    """Layers of a pipeline stage, over all its chunks.

    Where the stages do not divide the layers, embedding and output count as a layer each, as Megatron-LM can be told
    (`--account-for-embedding-in-pipeline-split`); else the first stages take one more.
    """
    layers, stages = job.shape.num_layers, job.layout.pipeline
    if layers % stages == 0:
        return layers // stages
    if (layers + 2) % stages == 0:
        return (layers + 2) // stages - (stage == 0) - (stage == stages - 1)
    return layers // stages + (stage < layers % stages)
