"""Seconds of a layer, of a stage and of a whole step, split into where they go.

A layer's products run at the device's calibrated share of its peak; what is not a product is bound by the memory's rate; what the
tensor axis exchanges is exposed unless it hides behind products. Nothing was fitted besides the numbers of `calibration.py`.
"""

from dataclasses import dataclass, fields

from megatron_poro.planning.counts import attention_flops, layer_weights, rank_parameters
from megatron_poro.planning.job import Job, layers_of_stage
from megatron_poro.planning.machine import Machine, data_rate, neighbour_rate, phase_seconds, stage_seconds
from megatron_poro.planning.memory import layer_activation_bytes, optimizer_shards

BACKWARD_PRODUCTS = 2.0
"""Gradients of weights and of inputs: two products for each of the forward pass."""
BACKWARD_ATTENTION = 2.5
"""Flash attention computes the scores again: five products for the two of the forward pass (Dao 2023, arXiv 2307.08691)."""
FORWARD_PASSES, BACKWARD_PASSES = 2.0, 3.0
"""Times that what a layer keeps goes through memory: written and read; read again, with gradients read and written."""
UPDATE_BYTES = 30.0
"""Of a parameter in AdamW: gradient 4, master weight and two moments read and written 24, weight written 2."""


@dataclass(frozen=True)
class Work:
    """Seconds of one microbatch: computing, and exposed communication of the tensor and the context axis."""

    compute: float = 0.0
    tensor: float = 0.0
    context: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.compute + other.compute, self.tensor + other.tensor, self.context + other.context)

    def __mul__(self, times: float) -> "Work":
        return Work(self.compute * times, self.tensor * times, self.context * times)

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compute + self.tensor + self.context


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by where they go; `imbalance` is what the slowest stage computes more than the mean."""

    compute: float
    imbalance: float
    tensor: float
    context: float
    pipeline: float
    bubble: float
    data: float
    update: float
    fixed: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return float(sum(getattr(self, f.name) for f in fields(self)))


def layer_work(job: Job, machine: Machine) -> tuple[Work, Work]:
    """A layer's forward and backward pass of one microbatch; full recomputation does the forward pass once more."""
    products = 2.0 * layer_weights(job.shape) * job.rank_tokens / job.layout.tensor
    attention = attention_flops(job.shape, job.sequence_length) * job.rank_tokens / job.layout.tensor
    attention *= 0.5 if job.method.fused_attention else 1.0
    traffic = layer_activation_bytes(job) / machine.memory_rate
    rate = machine.peak_flops * machine.efficiency
    forward_tensor, backward_tensor = _tensor_seconds(job, machine)
    ring = _context_seconds(job, machine, attention)
    forward = Work((products + attention) / rate + FORWARD_PASSES * traffic, forward_tensor, ring)
    back = BACKWARD_PRODUCTS * products + BACKWARD_ATTENTION * attention
    backward = Work(back / rate + BACKWARD_PASSES * traffic, backward_tensor, 2 * ring)
    if job.method.recompute == "full":
        return forward, backward + forward
    if job.method.recompute == "selective" and not job.method.fused_attention:
        return forward, backward + Work(attention / rate)
    return forward, backward


def output_work(job: Job, machine: Machine) -> tuple[Work, Work]:
    """The output layer and the loss: a product over the vocabulary, and the logits through memory."""
    logits = job.rank_tokens * job.shape.vocab_size / job.layout.tensor
    product = 2.0 * logits * job.shape.hidden_size / (machine.peak_flops * machine.efficiency)
    traffic = job.method.logit_bytes * logits / machine.memory_rate
    return Work(product + FORWARD_PASSES * traffic), Work(BACKWARD_PRODUCTS * product + BACKWARD_PASSES * traffic)


def stage_work(job: Job, machine: Machine) -> list[tuple[Work, Work]]:
    """Forward and backward of one microbatch through all chunks of each pipeline stage."""
    forward, backward = layer_work(job, machine)
    output = output_work(job, machine)
    found = []
    for stage in range(job.layout.pipeline):
        layers = layers_of_stage(job, stage)
        pair = forward * layers, backward * layers
        if stage == job.layout.pipeline - 1:
            pair = pair[0] + output[0], pair[1] + output[1]
        found.append(pair)
    return found


def step_time(job: Job, machine: Machine) -> StepTime:
    """A step by the closed form: the slowest stage for every microbatch, once every other stage, then what follows.

    The bubble is (p - 1) / m and (p - 1) / (v m) of the work where stages are equal (Narayanan 2021, arXiv 2104.04473).
    1F1B waits for every send, interleaved schedules overlap them but for filling and draining (megatron-core, schedules.py).
    """
    stages, layout, microbatches = stage_work(job, machine), job.layout, job.num_microbatches
    whole = [forward + backward for forward, backward in stages]
    slowest = max(whole, key=lambda work: work.seconds)
    mean = sum(work.compute for work in whole) / layout.pipeline
    send = send_seconds(job, machine)
    others = sum(work.seconds for work in whole) - slowest.seconds
    passes = microbatches + layout.pipeline - 1 if layout.virtual_stages == 1 else layout.pipeline - 1
    return StepTime(
        compute=microbatches * mean,
        imbalance=microbatches * (slowest.compute - mean),
        tensor=microbatches * slowest.tensor,
        context=microbatches * slowest.context,
        pipeline=2 * send * passes,
        bubble=others / layout.virtual_stages,
        data=max(data_seconds(job, machine, stage, pair) for stage, pair in enumerate(stages)),
        update=max(update_seconds(job, machine, stage) for stage in range(layout.pipeline)),
        fixed=machine.fixed_seconds,
    )


def send_seconds(job: Job, machine: Machine) -> float:
    """A microbatch's boundary to the next stage: each tensor rank sends its part (Narayanan 2021, 4.1)."""
    return stage_seconds(machine, job.layout, 2.0 * job.rank_tokens * job.shape.hidden_size / job.layout.tensor)


def data_seconds(job: Job, machine: Machine, stage: int, pair: tuple[Work, Work]) -> float:
    """Exposed gradient reduce-scatter and weight all-gather of a stage, in each step.

    They overlap with the last backward and the first forward pass of the stage; what is longer than these is exposed.
    """
    size, parameters = job.layout.data * job.layout.context, rank_parameters(job, stage)
    rate = data_rate(machine, job.layout)
    reduce = phase_seconds(machine, size, job.method.gradient_bytes * parameters, rate=rate)
    gather = phase_seconds(machine, size, 2.0 * parameters, rate=rate)
    if not job.method.overlap_data:
        return reduce + gather
    return max(0.0, reduce - pair[1].seconds) + max(0.0, gather - pair[0].seconds)


def update_seconds(job: Job, machine: Machine, stage: int) -> float:
    """The optimizer on its shard, and the norm of all gradients, bound by memory."""
    parameters = rank_parameters(job, stage)
    return parameters * (UPDATE_BYTES / optimizer_shards(job) + job.method.gradient_bytes) / machine.memory_rate


def _tensor_seconds(job: Job, machine: Machine) -> tuple[float, float]:
    """Exposed exchange of the tensor axis in a layer's forward and backward pass.

    Forward: two all-reduces, or two all-gathers and two reduce-scatters, the same four phases. Backward: those of the inputs'
    gradients hide behind the weights' gradients (megatron-core, tensor_parallel/layers.py); with sequence parallelism the two
    gathers of the outputs' gradients do not. User buffers cut a phase into `tensor` parts and hide all but the first.
    """
    tensor = job.layout.tensor
    size = 2.0 * job.rank_tokens * job.shape.hidden_size
    phase = phase_seconds(machine, tensor, size, rate=neighbour_rate(machine, tensor))
    if job.method.overlap_tensor:
        phase /= tensor
    return 4 * phase, (2 if job.method.sequence_parallel else 0) * phase


def _context_seconds(job: Job, machine: Machine, attention: float) -> float:
    """Exposed exchange of keys and values in a layer's forward pass: a ring that hides behind the attention's products."""
    context, shape = job.layout.context, job.shape
    if context == 1:
        return 0.0
    size = 2 * 2.0 * job.rank_tokens * shape.num_kv_heads * shape.head_dim / job.layout.tensor
    rate = neighbour_rate(machine, job.layout.tensor * context)
    ring = (context - 1) * (machine.latency + size / rate)
    return max(0.0, ring - attention / (machine.peak_flops * machine.efficiency))
