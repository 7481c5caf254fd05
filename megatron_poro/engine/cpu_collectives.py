"""Reduce-scatter and all-gather of megatron-core's data-parallel buffers on a CPU.

gloo copies a whole buffer even for a group of one, and reduce-scatters by an all-reduce of a copy, which sends everything twice.
Here each rank sends each other one the part that it needs, from where it lies and to where it is wanted.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def install_cpu_collectives() -> None:
    """Hand megatron-core's data-parallel buffers these collectives."""
    import megatron.core.distributed.param_and_grad_buffer as buffers

    module: Any = buffers
    module.dist_reduce_scatter_func, module.dist_all_gather_func = reduce_scatter, all_gather


def reduce_scatter(
    output: torch.Tensor, source: torch.Tensor, *, op: Any, group: dist.ProcessGroup, async_op: bool = False
) -> None:
    """The sum over the group of this rank's part of `source`, into `output`, which may lie in it. Every rank must call it.

    `source` is used up. Parts are added in the order of their ranks, so a rank's result does not depend on timing.
    """
    if op != dist.ReduceOp.SUM or async_op:
        raise ValueError(f"only a sum that is waited for is supported, not {op}, async_op={async_op}")
    own = group.rank()
    parts = list(source.view(group.size(), -1))
    received = [part if rank == own else torch.empty_like(part) for rank, part in enumerate(parts)]
    _exchange(parts, received, group)
    total = received[0]
    for rank, part in enumerate(received[1:], start=1):
        total = part.add_(total) if rank == own else total.add_(part)
    _copy_unless_same(output, total)


def all_gather(output: torch.Tensor, source: torch.Tensor, *, group: dist.ProcessGroup, async_op: bool = False) -> None:
    """Every rank's `source` one after the other in `output`, which this rank's may lie in. Every rank must call it."""
    if async_op:
        raise ValueError("only what is waited for is supported")
    parts = list(output.view(group.size(), -1))
    _copy_unless_same(parts[group.rank()], source)
    _exchange([parts[group.rank()]] * group.size(), parts, group)


def _exchange(sent: Sequence[torch.Tensor], received: Sequence[torch.Tensor], group: dist.ProcessGroup) -> None:
    """Send the others their part of `sent` and receive theirs, by rank."""
    others = [rank for rank in range(group.size()) if rank != group.rank()]
    work = [group.recv([received[rank]], rank, 0) for rank in others]
    work += [group.send([sent[rank]], rank, 0) for rank in others]
    for each in work:
        each.wait()


def _copy_unless_same(output: torch.Tensor, source: torch.Tensor) -> None:
    if output.data_ptr() != source.data_ptr():
        output.copy_(source.view_as(output))
