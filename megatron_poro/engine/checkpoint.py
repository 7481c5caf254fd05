"""Loading distributed checkpoints: each rank reads the numbers it holds, at any layout, and nothing runs what a file says.

A checkpoint holds the model, the optimizer where it is a training checkpoint, `model.json` (the shape, for conversion),
`state.json` (where the run stands), `config.toml` (the resolved run file) and `files.json` (SHA-256 of every file). `saving.py`
writes them.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from megatron_poro.config import RANDOM, ModelConfig
from megatron_poro.conversion import (
    check_files,
    differing_keys,
    find_change,
    is_as_written,
    read_checkpoint_index,
    read_checksums,
    read_model_file,
)
from megatron_poro.conversion.arrays import StoredArray
from megatron_poro.conversion.torch_dist import CheckpointIndex
from megatron_poro.engine.paths import read_state
from megatron_poro.engine.shards import Shard, state_shards, weight_shards
from megatron_poro.errors import CheckpointError, ConversionError

OPTIMIZER_STATE = "optimizer.*"
OPAQUE = "*._extra_state*"
"""Transformer Engine's, empty outside FP8; torch unpickles opaque objects, which can run code, so none is ever opened."""
FILES = frozenset({".metadata", "common.pt", "config.toml", "metadata.json", "model.json", "state.json"})
"""What every checkpoint of a run has beside its tensors."""


def find_damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint of a run, empty when every file is as it was written.

    The ranks share the reading and all get the same answer; every rank must call it.
    """
    try:
        problem = _find_own_damage(checkpoint)
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
    except (CheckpointError, ConversionError) as error:
        problem = str(error)
    problems: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next((problem for problem in problems if problem), "")


def _find_own_damage(checkpoint: Path) -> str:
    """What is wrong with this rank's share of the files, and with what lists them."""
    listed = read_checksums(checkpoint)
    if not is_as_written(checkpoint):
        return f"{checkpoint / 'files.json'} is damaged"
    if missing := sorted(FILES - listed.keys()):
        return f"{checkpoint / 'files.json'} lists no {missing[0]}"
    if dist.get_rank() == 0:
        read_state(checkpoint)
    return find_change(checkpoint, sorted(listed)[dist.get_rank() :: dist.get_world_size()])


def load_training(
    checkpoint: Path,
    model: ModelConfig,
    chunks: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    *,
    num_updates: int,
) -> None:
    """Load weights and optimizer of a training checkpoint, which has had `num_updates` updates. Every rank must call it.

    Raises CheckpointError when it is not one of this model.
    """
    weights = weight_shards(chunks, vocab_size=model.vocab_size)
    states = state_shards(chunks, optimizer, vocab_size=model.vocab_size)
    wanted = [*weights, *(shard for kind in states for shard in states[kind])]
    index = _open(checkpoint, wanted, not_wanted=(OPAQUE,))
    _fill(index, wanted)
    for group in optimizer.param_groups:
        group["step"] = num_updates


def load_weights(
    checkpoint: Path, model: ModelConfig, chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer
) -> None:
    """Load only the weights: the start of a run from a converted or trained checkpoint. Every rank must call it.

    Raises CheckpointError when it is not one of this model, or damaged.
    """
    check_same_model(checkpoint, model)
    listed = sorted(read_checksums(checkpoint))
    check_files(checkpoint, listed[dist.get_rank() :: dist.get_world_size()])
    wanted = weight_shards(chunks, vocab_size=model.vocab_size)
    _fill(_open(checkpoint, wanted, not_wanted=(OPAQUE, OPTIMIZER_STATE)), wanted)
    optimizer.reload_model_params()


def check_same_model(checkpoint: Path, model: ModelConfig) -> None:
    """Raise CheckpointError naming every key in which the run file's model differs from the checkpoint's."""
    differing = differing_keys(model, read_model_file(checkpoint)[0])
    if differing:
        raise CheckpointError(
            f"{checkpoint}: holds another model than the run file says: {'; '.join(differing)} there; change one of them"
        )


def read_source(checkpoint: str | Path) -> dict[str, Any]:
    """Where the weights of a checkpoint came from, as its model.json says; `random` is a source of its own."""
    return {"name": RANDOM} if checkpoint == RANDOM else read_model_file(Path(checkpoint))[1]


def _open(checkpoint: Path, wanted: Sequence[Shard], *, not_wanted: Sequence[str]) -> CheckpointIndex:
    """The checkpoint's index. Raises CheckpointError when a tensor that any rank wants is not there, or one that none wants is."""
    index = read_checkpoint_index(checkpoint)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, {shard.name for shard in wanted})
    names = set().union(*gathered)
    missing = sorted(names - index.tensors.keys())
    unknown = sorted(
        name for name in {*index.tensors, *index.objects} - names if not any(fnmatch(name, pattern) for pattern in not_wanted)
    )
    if unknown or missing:
        raise CheckpointError(
            f"{checkpoint}: not a checkpoint of this model: it lacks {missing[:3] or 'nothing'}, "
            f"and this model has no {unknown[:3] or 'nothing'}"
        )
    return index


def _fill(index: CheckpointIndex, wanted: Iterable[Shard]) -> None:
    """Read each shard's numbers into its place; one shard is in host memory at a time."""
    located: dict[str, StoredArray] = {}
    for shard in wanted:
        if shard.name not in located:
            located[shard.name] = index.locate(shard.name)
            _check_shape(index, shard)
        region = tuple(slice(start, start + size) for start, size in zip(shard.offsets, shard.sizes, strict=True))
        shard.numbers.copy_(located[shard.name].read(region).view(-1))


def _check_shape(index: CheckpointIndex, shard: Shard) -> None:
    """Rows that pad the vocabulary may be stored beyond the tensor's own."""
    stored = index.tensors[shard.name].shape
    rows_fit = len(stored) == len(shard.shape) and (
        stored[:1] == shard.shape[:1] or (shard.is_padded and stored[0] > shard.shape[0])
    )
    if not rows_fit or stored[1:] != shard.shape[1:]:
        raise CheckpointError(
            f"{index.directory}: {shard.name} is {list(stored)} there, {list(shard.shape)} in the run file's model"
        )
