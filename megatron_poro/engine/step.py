"""One optimizer step, or one pass over held-out samples, through megatron-core's pipeline schedule."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_poro.engine.documents import model_inputs, schedule_shape
from megatron_poro.engine.groups import holds_loss, sum_over_world
from megatron_poro.engine.model import unwrap
from megatron_poro.engine.optimizer import prepare_update, update
from megatron_poro.engine.phases import Phase, enter

Microbatch = tuple[np.ndarray[Any, np.dtype[np.integer[Any]]], int]
"""Token ids [batch, seq + 1] and how many of the rows count; the others fill the shape up."""


@dataclass(frozen=True)
class StepResult:
    """Mean loss per token over the global batch in nats, gradient norm before clipping, whether the weights were updated, and the
    votes of all ranks, summed."""

    loss: float
    gradient_norm: float
    updated: bool
    votes: tuple[float, ...]


def train_step(
    chunks: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    microbatches: Sequence[Microbatch],
    *,
    votes: Sequence[float] = (),
    may_update: Callable[[float, float], bool] = lambda loss, gradient_norm: True,
) -> StepResult:
    """Forward, backward and update over this rank's microbatches. Every rank must call it.

    `votes` travel with the losses, so that all ranks learn of any rank's wishes at the same step and at no cost. `may_update` sees
    loss and gradient norm, which are the same bits on every rank, and decides on the update: all ranks decide alike.
    """
    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    totals = _run_schedule(chunks, microbatches, forward_only=False, votes=votes)
    enter(Phase.OPTIMIZER)
    gradient_norm = prepare_update(optimizer)
    loss, counts = _mean(totals), totals[2:].tolist()  # reading the norm has waited for the device already
    updated = may_update(loss, gradient_norm)
    if updated:
        update(optimizer, gradient_norm)
    return StepResult(loss, gradient_norm, updated, tuple(counts))


@torch.no_grad()
def evaluate(chunks: Sequence[DistributedDataParallel], microbatches: Sequence[Microbatch]) -> float:
    """Mean loss per token over the rows that count, in nats, on every rank. Every rank must call it."""
    for chunk in chunks:
        chunk.eval()
    totals = _run_schedule(chunks, microbatches, forward_only=True)
    for chunk in chunks:
        chunk.train()
    return _mean(totals)


def _run_schedule(
    chunks: Sequence[DistributedDataParallel],
    microbatches: Sequence[Microbatch],
    *,
    forward_only: bool,
    votes: Sequence[float] = (),
) -> torch.Tensor:
    """Sum of token losses, number of tokens, and the votes: float64 [2 + votes], summed over all ranks."""
    sequence_length, batch_size = schedule_shape(microbatches[0][0], unwrap(chunks[0]).documents)
    iterators: list[Iterator[Microbatch]] = [iter(microbatches) for _ in chunks]
    reports = get_forward_backward_func()(
        forward_step_func=_validation_step if forward_only else _training_step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=list(chunks) if len(chunks) > 1 else chunks[0],
        num_microbatches=len(microbatches),
        seq_length=sequence_length,
        micro_batch_size=batch_size,
        forward_only=forward_only,
    )
    totals = torch.tensor([0.0, 0.0, *votes], dtype=torch.float64, device=next(chunks[0].parameters()).device)
    if holds_loss():
        totals[:2] += torch.stack(reports).sum(dim=0)
    return sum_over_world(totals)


def _training_step(microbatches: Iterator[Microbatch], model: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
    enter(Phase.FORWARD)
    output = _forward_step(microbatches, model)
    enter(Phase.BACKWARD)
    return output


def _validation_step(microbatches: Iterator[Microbatch], model: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
    enter(Phase.VALIDATION)
    return _forward_step(microbatches, model)


def _forward_step(microbatches: Iterator[Microbatch], model: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
    """What the schedule calls for each microbatch and chunk: the chunk's output, and the loss to take from the last one's."""
    rows, num_rows = next(microbatches)
    inputs = model_inputs(rows, unwrap(model).documents, next(model.parameters()).device)
    losses = model(inputs.tokens, inputs.positions, None, labels=inputs.labels, packed_seq_params=inputs.packed)
    return losses, partial(_report_loss, len(rows), num_rows)


def _report_loss(batch_size: int, num_rows: int, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the backward pass starts from, and [sum, tokens] of this rank over the rows that count for the report.

    A context rank has a part of each sequence: its share of the mean loss goes back, and the schedule multiplies it by their number
    as it divides gradients by it.
    """
    counted = losses.view(batch_size, -1)[:num_rows]
    report = torch.tensor([0.0, counted.numel()], dtype=torch.float64, device=losses.device)
    report[0] = counted.detach().double().sum()
    return losses.mean() / parallel_state.get_context_parallel_world_size(), report


def _mean(totals: torch.Tensor) -> float:
    total, num_tokens = totals[:2].tolist()
    return float(total / num_tokens)
