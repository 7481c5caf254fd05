"""Reduce-scatter and all-gather in place, as megatron-core's buffers ask for them."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_poro.engine.cpu_collectives import all_gather, reduce_scatter
from tests.engine.ranks import run_on_ranks

PART = 5


def exchange(rank: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's part of the sum of all ranks' buffers, then everybody's parts."""
    buffer = torch.arange(PART * size, dtype=torch.float32) * 10**rank
    own = buffer[rank * PART : (rank + 1) * PART]
    group = dist.group.WORLD
    assert group is not None
    reduce_scatter(own, buffer, op=dist.ReduceOp.SUM, group=group)
    summed = own.clone()
    all_gather(buffer, own, group=group)
    return summed, buffer


@pytest.mark.parametrize("size", [1, 3])
def test_parts_are_summed_where_they_lie_and_gathered(size: int, tmp_path: Path) -> None:
    expected = torch.arange(PART * size, dtype=torch.float32) * sum(10**rank for rank in range(size))
    for rank, (summed, gathered) in enumerate(run_on_ranks(exchange, size, tmp_path)):
        assert torch.equal(summed, expected[rank * PART : (rank + 1) * PART])
        assert torch.equal(gathered, expected)
