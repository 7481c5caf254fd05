"""Memory of a rank of every pipeline stage, at the peak of a step, in bytes.

Sources: Megatron-LM's theoretical_memory_usage.py (weights and optimizer), Korthikanti et al. 2022, arXiv 2205.05198 (activations
and how many are in flight), megatron-core's schedules (interleaved chunks in flight). Checked against the memory that Megatron-LM's
own tests record: benchmarks/RESULTS.md.
"""

from dataclasses import dataclass

from megatron_poro.planning.counts import rank_parameters
from megatron_poro.planning.job import Job, layers_of_stage

WORKSPACE = 2 * 32 * 2**20
"""cuBLAS' workspace (32 MiB by its documentation) and Transformer Engine's of the same size; both come from the allocator."""
OUTSIDE = 2e9
"""The driver's context and the communicators' buffers, which the allocator does not count: an assumption, on the safe side."""
MARGIN = 0.08
"""Of the rest: fragmentation and what formulas do not see. The largest shortfall on published logs was 7 % (Nemotron4-15B)."""


@dataclass(frozen=True)
class StageMemory:
    """A rank of pipeline stage `stage`; `in_flight` counts the chunks whose activations it keeps at the peak."""

    stage: int
    parameters: int
    in_flight: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float

    @property
    def static(self) -> float:
        """What stays between steps."""
        return self.weights + self.gradients + self.optimizer

    @property
    def allocated(self) -> float:
        """The allocator's peak: what `max_memory_allocated` shows."""
        return self.static + self.activations + self.logits + self.buffers

    @property
    def margin(self) -> float:
        """For fragmentation and for what the allocator does not count."""
        return MARGIN * self.allocated + OUTSIDE

    @property
    def total(self) -> float:
        """What the device must have."""
        return self.allocated + self.margin


def stage_memory(job: Job, stage: int) -> StageMemory:
    """Memory of a rank of that stage."""
    parameters = rank_parameters(job, stage)
    chunks = chunks_in_flight(job, stage)
    is_last = stage == job.layout.pipeline - 1
    return StageMemory(
        stage=stage,
        parameters=parameters,
        in_flight=chunks,
        weights=2.0 * parameters,
        gradients=float(job.method.gradient_bytes * parameters),
        optimizer=12.0 * parameters / optimizer_shards(job),
        activations=activation_bytes(job, stage, chunks),
        logits=logit_bytes(job) if is_last else 0.0,
        buffers=buffer_bytes(job),
    )


def memory_of_stages(job: Job) -> list[StageMemory]:
    """One for each pipeline stage."""
    return [stage_memory(job, stage) for stage in range(job.layout.pipeline)]


def optimizer_shards(job: Job) -> int:
    """Ranks that share master weights and moments (4 + 4 + 4 bytes a parameter): all of data and context axis, or none."""
    return job.layout.data * job.layout.context if job.method.distributed_optimizer else 1


def chunks_in_flight(job: Job, stage: int) -> int:
    """Model chunks whose activations a stage keeps at most.

    1F1B: min(microbatches, stages - stage). Interleaved: min(m v, 2 (p - r - 1) + (v - 1) p + 1), megatron-core's warm-up and one.
    """
    stages, virtual, microbatches = job.layout.pipeline, job.layout.virtual_stages, job.num_microbatches
    if virtual == 1:
        return min(microbatches, stages - stage)
    return min(microbatches * virtual, 2 * (stages - stage - 1) + (virtual - 1) * stages + 1)


def layer_activation_bytes(job: Job) -> float:
    """Activations that one layer keeps of one microbatch, bf16.

    Korthikanti's 34 sbh for GPT is 10 outside of the tensor-parallel part (which sequence parallelism cuts too) and 24 inside. Here
    term by term: inputs and outputs of two norms 2 x 2 x 2; query, key, value and the attention's output 4 + 4 kv/a; the
    feed-forward part 6 ffn/h with SwiGLU, 4 ffn/h and the two dropout masks without. Attention that is not fused keeps 5 a s more.
    """
    shape, tensor, tokens = job.shape, job.layout.tensor, job.rank_tokens
    whole = 8.0 * shape.hidden_size + (0 if shape.gated else 2 * shape.hidden_size)
    attention = shape.head_dim * (4 * shape.num_heads + 4 * shape.num_kv_heads)
    cut = float(attention + (6 if shape.gated else 4) * shape.ffn_hidden_size)
    if not job.method.fused_attention and job.method.recompute != "selective":
        cut += 5 * shape.num_heads * job.sequence_length
    return tokens * (whole / (tensor if job.method.sequence_parallel else 1) + cut / tensor)


def activation_bytes(job: Job, stage: int, chunks: int) -> float:
    """Activations of all chunks in flight; with full recomputation each layer's input, and one layer that is computed again."""
    layers = layers_of_stage(job, stage) / job.layout.virtual_stages * chunks
    if job.method.recompute != "full":
        return layers * layer_activation_bytes(job)
    cut = job.layout.tensor if job.method.sequence_parallel else 1
    return layers * 2.0 * job.rank_tokens * job.shape.hidden_size / cut + layer_activation_bytes(job)


def logit_bytes(job: Job) -> float:
    """The last stage's logits: bf16, and fp32 of the same for cross-entropy, cut over the tensor axis."""
    return float(job.method.logit_bytes) * job.rank_tokens * job.shape.vocab_size / job.layout.tensor


def buffer_bytes(job: Job) -> float:
    """Workspaces; the gathered input of a sequence-parallel layer; a microbatch each that is being received and sent."""
    boundary = 2.0 * job.rank_tokens * job.shape.hidden_size
    gathered = boundary if job.method.sequence_parallel and job.layout.tensor > 1 else 0.0
    cut = job.layout.tensor if job.method.sequence_parallel else 1
    return WORKSPACE + gathered + (2 * boundary / cut if job.layout.pipeline > 1 else 0.0)
