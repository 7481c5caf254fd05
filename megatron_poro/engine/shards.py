"""Which part of which tensor of a checkpoint this rank holds: the one map that saving and loading follow.

megatron-core says where a parameter lies in the whole tensor; its distributed optimizer says which flat range of the parameter a
data-parallel rank updates. Cutting that range into boxes lets every rank write and read what is its own, and nothing else: no
gathering, no copy of the model's optimizer state on any rank. Names and shapes are those of megatron-core's `fully_reshardable`
checkpoints, and its own loader reads them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from megatron_poro.conversion.arrays import boxes_of_range
from megatron_poro.engine.model import unwrap

MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "param"


@dataclass(frozen=True)
class Shard:
    """A box of a tensor of the checkpoint and the flat memory [prod(sizes)] of this rank that holds its numbers.

    `is_padded` says that rows beyond the tensor's may exist in memory; they belong to no checkpoint.
    """

    name: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    numbers: torch.Tensor
    is_padded: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes of the numbers."""
        return math.prod(self.sizes) * self.numbers.dtype.itemsize


@dataclass(frozen=True)
class _Part:
    """A parameter, or the half of one that is stored apart (gate and up): where it lies, and its first number in the parameter."""

    param: torch.nn.Parameter
    where: ShardedTensor
    first: int
    shape: tuple[int, ...]
    num_rows: int


def weight_shards(chunks: Sequence[DistributedDataParallel], *, vocab_size: int) -> list[Shard]:
    """All weights of this rank, whole: what loading fills."""
    return [
        shard
        for part in _parts(chunks, vocab_size)
        for shard in _cut(part, range(part.param.numel()), part.param.detach().view(-1), name=part.where.key)
    ]


def state_shards(
    chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer, *, vocab_size: int
) -> dict[str, list[Shard]]:
    """What this rank's part of the optimizer holds, by kind: `param` (the weights that are updated), `exp_avg`, `exp_avg_sq`."""
    shards: dict[str, list[Shard]] = {kind: [] for kind in (MASTER, *MOMENTS)}
    for part in _parts(chunks, vocab_size):
        owned, states = _owned(optimizer, part.param)
        for kind, numbers in states.items():
            shards[kind] += _cut(part, owned, numbers, name=f"optimizer.state.{kind}.{part.where.key}")
    return shards


def saved_shards(
    chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer, *, vocab_size: int
) -> list[tuple[Shard, tuple[str, ...]]]:
    """What this rank writes, and the further names under which the same bytes stand in the checkpoint.

    Every number of weights and optimizer is written by exactly one rank: its data-parallel owner, in the first of the ranks that
    hold copies of it (norms over a tensor group, a tied embedding on the last stage).
    """
    saved: list[tuple[Shard, tuple[str, ...]]] = []
    for part in _parts(chunks, vocab_size):
        if any(part.where.replica_id[:-1]):  # the last place is the data-parallel rank, whose shares the ranges tell apart
            continue
        owned, states = _owned(optimizer, part.param)
        weights = part.param.detach().view(-1)[owned.start : owned.stop]
        master = f"optimizer.state.{MASTER}.{part.where.key}"
        shared = states[MASTER].dtype == weights.dtype if states else False
        saved += [(shard, (master,) if shared else ()) for shard in _cut(part, owned, weights, name=part.where.key)]
        for kind, numbers in states.items():
            if not (shared and kind == MASTER):
                saved += [(shard, ()) for shard in _cut(part, owned, numbers, name=f"optimizer.state.{kind}.{part.where.key}")]
    return saved


def _parts(chunks: Sequence[DistributedDataParallel], vocab_size: int) -> Iterator[_Part]:
    for chunk in chunks:
        for stored in unwrap(chunk).sharded_state_dict().values():
            if isinstance(stored, ShardedTensorFactory):
                first = 0
                for half in stored.build():
                    yield _part(stored.data, half, first, vocab_size)
                    first += math.prod(half.local_shape)
            elif isinstance(stored, ShardedTensor):
                yield _part(stored.data, stored, 0, vocab_size)
            # What is neither is `_extra_state`, Transformer Engine's, and empty outside FP8.


def _part(param: torch.nn.Parameter, where: ShardedTensor, first: int, vocab_size: int) -> _Part:
    """A tensor that may be padded (`allow_shape_mismatch`: embedding and output layer) has as many rows as there are token ids."""
    rows = int(where.local_shape[0])
    if where.allow_shape_mismatch:
        rows = min(max(vocab_size - int(where.global_offset[0]), 0), rows)
        where = replace(where, global_shape=(vocab_size, *where.global_shape[1:]))
    return _Part(param, where, first, tuple(where.local_shape), rows)


def _owned(optimizer: MegatronOptimizer, param: torch.nn.Parameter) -> tuple[range, dict[str, torch.Tensor]]:
    """The flat range of a parameter that this rank updates, and the optimizer's tensors over that range; empty when none."""
    for part in optimizer.chained_optimizers:
        if param in part.model_param_gbuf_map and param in part.model_param_group_index_map:
            owned = part._get_model_param_range_map(param)["param"]
            states = part._get_main_param_and_optimizer_states(param)
            return range(owned.start, owned.end), {kind: states[kind].detach().view(-1) for kind in (MASTER, *MOMENTS)}
    return range(0), {}


def _cut(part: _Part, owned: range, numbers: torch.Tensor, *, name: str) -> Iterator[Shard]:
    """The boxes of `part` that the flat range `owned` of its parameter covers; `numbers` are that range's."""
    end = part.first + part.num_rows * math.prod(part.shape[1:])
    start, stop = max(owned.start, part.first), min(owned.stop, end)
    axes = part.where.prepend_axis_num
    lead = tuple(map(int, part.where.global_offset[:axes]))
    origin = tuple(map(int, part.where.global_offset[axes:]))
    done = start - owned.start
    for offsets, sizes in boxes_of_range(start - part.first, stop - part.first, part.shape):
        place = tuple(o + n for o, n in zip(origin, offsets, strict=True))
        count = math.prod(sizes)
        yield Shard(
            name,
            tuple(map(int, part.where.global_shape)),
            lead + place,
            (1,) * axes + sizes,
            numbers[done : done + count],
            bool(part.where.allow_shape_mismatch),
        )
        done += count
