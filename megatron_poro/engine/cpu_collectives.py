"""Reduce-scatter and all-gather of megatron-core's data-parallel buffers on a CPU.

gloo copies a whole buffer even for a group of one, and reduce-scatters by an all-reduce of a copy, which sends everything twice.
"""

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

    Parts are added in the order of their ranks, so a rank's result does not depend on timing.
    """
    if op != dist.ReduceOp.SUM or async_op:
        raise ValueError(f"only a sum that is waited for is supported, not {op}, async_op={async_op}")
    size = group.size()
    if size == 1:
        _copy_unless_same(output, source)
        return
    received = torch.empty_like(source)
    dist.all_to_all_single(received, source, group=group)
    torch.sum(received.view(size, -1), dim=0, out=output.view(-1))


def all_gather(output: torch.Tensor, source: torch.Tensor, *, group: dist.ProcessGroup, async_op: bool = False) -> None:
    """Every rank's `source` one after the other in `output`, which this rank's may lie in. Every rank must call it."""
    if group.size() == 1:
        _copy_unless_same(output, source)
        return
    dist.all_gather_into_tensor(output, source, group=group, async_op=async_op)


def _copy_unless_same(output: torch.Tensor, source: torch.Tensor) -> None:
    if output.data_ptr() != source.data_ptr():
        output.copy_(source)
