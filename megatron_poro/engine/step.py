"""One optimizer step, or one pass over held-out samples, through megatron-core's pipeline schedule."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

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


class Microbatch(NamedTuple):
    """Token ids [batch, seq + 1], how many of the rows count (the others fill the shape up), and the source of each row, or 0."""

    rows: np.ndarray[Any, np.dtype[np.integer[Any]]]
    num_rows: int
    sources: Sequence[int] = ()


Report = tuple[Microbatch, torch.Tensor, int]


@dataclass(frozen=True)
class StepResult:
    """Mean loss per token over the global batch in nats, gradient norm before clipping, whether the weights were updated, the votes
    of all ranks, summed, and the mean loss of each source, None for one that the batch has nothing of."""

    loss: float
    gradient_norm: float
    updated: bool
    votes: tuple[float, ...]
    losses: tuple[float | None, ...]


def train_step(
    chunks: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    microbatches: Sequence[Microbatch],
    *,
    num_sources: int = 1,
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
    totals = _run_schedule(chunks, microbatches, forward_only=False, num_sources=num_sources, votes=votes)
    enter(Phase.OPTIMIZER)
    gradient_norm = prepare_update(optimizer)
    numbers = totals.tolist()  # reading the norm has waited for the device already
    sums, counts = numbers[:num_sources], numbers[num_sources : 2 * num_sources]
    loss = sum(sums) / sum(counts)
    updated = may_update(loss, gradient_norm)
    if updated:
        update(optimizer, gradient_norm)
    losses = tuple(total / count if count else None for total, count in zip(sums, counts, strict=True))
    return StepResult(loss, gradient_norm, updated, tuple(numbers[2 * num_sources :]), losses)


@torch.no_grad()
def evaluate(chunks: Sequence[DistributedDataParallel], microbatches: Sequence[Microbatch]) -> float:
    """Mean loss per token over the rows that count, in nats, on every rank. Every rank must call it."""
    for chunk in chunks:
        chunk.eval()
    total, num_tokens = _run_schedule(chunks, microbatches, forward_only=True).tolist()
    for chunk in chunks:
        chunk.train()
    return float(total / num_tokens)


def _run_schedule(
    chunks: Sequence[DistributedDataParallel],
    microbatches: Sequence[Microbatch],
    *,
    forward_only: bool,
    num_sources: int = 1,
    votes: Sequence[float] = (),
) -> torch.Tensor:
    """Sums of token losses and numbers of tokens by source, and the votes: float64 [2 x sources + votes], summed over all ranks."""
    sequence_length, batch_size = schedule_shape(microbatches[0].rows, unwrap(chunks[0]).documents)
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
    totals = torch.tensor([0.0] * (2 * num_sources) + list(votes), dtype=torch.float64, device=next(chunks[0].parameters()).device)
    if holds_loss():
        add_losses(totals[: 2 * num_sources].view(2, num_sources), reports)
    return sum_over_world(totals)


def add_losses(totals: torch.Tensor, reports: Sequence[Report]) -> None:
    """Add the reports of all microbatches to the sums and the numbers of tokens [2, sources]: the same bits whenever repeated."""
    sums = torch.cat([sums[: microbatch.num_rows] for microbatch, sums, _ in reports])  # [rows that count]
    sources = [n for microbatch, _, _ in reports for n in (microbatch.sources or [0] * microbatch.num_rows)[: microbatch.num_rows]]
    tokens = [num_tokens for microbatch, _, num_tokens in reports for _ in range(microbatch.num_rows)]
    rows = np.stack([np.array(sources), np.array(tokens)])  # [2, rows]
    by_row = torch.from_numpy(rows).to(totals.device)
    is_of = by_row[0] == torch.arange(totals.shape[1], device=totals.device)[:, None]  # [sources, rows]
    totals += torch.stack([torch.where(is_of, values, 0.0).sum(dim=1) for values in (sums, by_row[1].double())])


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
    microbatch = next(microbatches)
    inputs = model_inputs(microbatch.rows, unwrap(model).documents, next(model.parameters()).device)
    losses = model(inputs.tokens, inputs.positions, None, labels=inputs.labels, packed_seq_params=inputs.packed)
    return losses, partial(_report_loss, microbatch)


def _report_loss(microbatch: Microbatch, losses: torch.Tensor) -> tuple[torch.Tensor, Report]:
    """What the backward pass starts from, and the report: the microbatch, sums of losses [batch] of this rank, tokens of a row.

    A context rank has a part of each sequence: its share of the mean loss goes back, and the schedule multiplies it by their number
    as it divides gradients by it.
    """
    by_row = losses.detach().view(len(microbatch.rows), -1)
    report = (microbatch, by_row.sum(dim=1, dtype=torch.float64), by_row.shape[1])
    return losses.mean() / parallel_state.get_context_parallel_world_size(), report
