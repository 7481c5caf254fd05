"""Distributed checkpoints: megatron-core's torch_dist format, written under a temporary name and renamed when whole.

A checkpoint holds the model, the optimizer where it is a training checkpoint, `model.json` (the shape, for conversion),
`state.json` (where the run stands) and `config.toml` (the resolved run file). It loads at any layout.
"""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedStateDict
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed import checkpoint as torch_checkpoint

from megatron_poro.config import RANDOM, ModelConfig, RunConfig, save_run
from megatron_poro.conversion import (
    check_files,
    check_metadata_is_safe,
    differing_keys,
    hash_files,
    read_checksums,
    read_model_file,
    write_checksums,
    write_model_file,
)
from megatron_poro.conversion.files import write_json
from megatron_poro.engine.model import unwrap
from megatron_poro.engine.paths import checkpoint_path, list_checkpoints, read_state
from megatron_poro.engine.phases import Phase, enter
from megatron_poro.errors import CheckpointError

FORMAT = 1
OPTIMIZER_METADATA = {"distrib_optim_sharding_type": "fully_reshardable", "distrib_optim_fully_reshardable_mem_efficient": False}


@dataclass(frozen=True)
class TrainState:
    """Where a run stands: optimizer steps taken, samples and tokens consumed."""

    step: int = 0
    samples: int = 0
    tokens: int = 0


class ThreadedSave(TorchDistSaveShardedStrategy):  # type: ignore[misc]
    """megatron-core's format written by threads of this process.

    megatron-core forks writers and waits for them for ever, also for one that was killed; threads die with their rank.
    """

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)

    def save(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: Path) -> None:
        """Write this rank's shards and, on rank 0, the metadata. Every rank must call it."""
        sharded_state_dict, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
        torch_checkpoint.save(
            mcore_to_pyt_state_dict(sharded_state_dict, False),
            storage_writer=torch_checkpoint.FileSystemWriter(checkpoint_dir, thread_count=2),
            planner=MCoreSavePlanner(dedup_replicated_tensors=not self.keep_only_main_replica, flatten_state_dict=False),
        )


def save_checkpoint(
    config: RunConfig,
    state: TrainState,
    chunks: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    *,
    source: dict[str, Any],
    extra: dict[str, Any],
) -> Path:
    """Write the checkpoint after `state.step` steps, whole or not at all; `source` says where the weights came from.

    `extra` goes into state.json. Raises CheckpointError when the disk is full or the folder cannot be written. Every rank must
    call it.
    """
    target = checkpoint_path(Path(config.run_directory), state.step)
    try:
        partial = _write_shards(target, chunks, optimizer)
        hashes = _hash_shards(partial)
        if dist.get_rank() == 0:
            write_model_file(partial, config.model, source)
            save_run(config, partial / "config.toml")
            write_json(partial / "state.json", {"format": FORMAT, **asdict(state), **extra})
            others = [path.name for path in partial.iterdir() if path.name not in hashes]
            write_checksums(partial, hashes | hash_files(partial, others))
            _publish(partial, target)
        dist.barrier()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{target}: could not be saved ({_first_line(error)}); free space and start again, from the checkpoint before"
        ) from error
    return target


def _write_shards(target: Path, chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer) -> Path:
    """Write weights and optimizer under a temporary name, and return it; every rank must call it."""
    partial = target.with_name(f"partial-{target.name}")
    if dist.get_rank() == 0:
        for leftover in target.parent.glob("partial-*"):
            shutil.rmtree(leftover)
        partial.mkdir(parents=True)
    dist.barrier()
    content = _model_state(chunks)
    content["optimizer"] = optimizer.sharded_state_dict(dict(content), metadata=OPTIMIZER_METADATA)
    dist_checkpointing.save(content, str(partial), sharded_strategy=ThreadedSave())
    return partial


def _hash_shards(partial: Path) -> dict[str, Any]:
    """Checksums of all tensor files, each rank reading those it wrote; every rank must call it."""
    mine = hash_files(partial, (path.name for path in partial.glob(f"__{dist.get_rank()}_*.distcp")))
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return {name: entry for part in gathered for name, entry in part.items()}


def _check_shards(checkpoint: Path) -> None:
    """Compare the checkpoint's files with its checksums, the ranks sharing the work."""
    listed = sorted(read_checksums(checkpoint))
    check_files(checkpoint, listed[dist.get_rank() :: dist.get_world_size()])


def load_training(checkpoint: Path, chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer) -> TrainState:
    """Load weights and optimizer of a training checkpoint, strictly. Every rank must call it."""
    content = _weights_state(chunks)
    content["optimizer"] = optimizer.sharded_state_dict(dict(content), is_loading=True, metadata=OPTIMIZER_METADATA)
    loaded = _load(checkpoint, content, not_wanted=("*._extra_state*",))
    _set_model(chunks, loaded)
    optimizer.load_state_dict(loaded["optimizer"])
    state = read_state(checkpoint)
    return TrainState(state["step"], state["samples"], state["tokens"])


def load_weights(
    checkpoint: Path, model: ModelConfig, chunks: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer
) -> None:
    """Load only the weights: the start of a run from a converted or trained checkpoint. Every rank must call it."""
    check_same_model(checkpoint, model)
    loaded = _load(checkpoint, _weights_state(chunks), not_wanted=("*._extra_state*", "optimizer.*"))
    _set_model(chunks, loaded)
    optimizer.reload_model_params()


def _load(checkpoint: Path, content: ShardedStateDict, *, not_wanted: Sequence[str]) -> dict[str, Any]:
    """What `content` asks for. Raises CheckpointError for a tensor that is missing or, unless its name is `not_wanted`, left over.

    torch unpickles opaque objects, which can run code, so none may be asked for.
    """
    if any(isinstance(value, ShardedObject) for value in nested_values(content)):
        raise ValueError("an opaque object would be loaded")
    check_metadata_is_safe(checkpoint)
    _check_shards(checkpoint)
    try:
        loaded, left_over, absent = dist_checkpointing.load(content, str(checkpoint), strict=StrictHandling.RETURN_ALL)
    except Exception as error:  # megatron-core and torch raise whatever a damaged file makes them raise
        raise CheckpointError(f"{checkpoint}: cannot be loaded ({_first_line(error)}); move the folder away") from error
    unknown = sorted(key for key in left_over if not any(fnmatch(key, pattern) for pattern in not_wanted))
    missing = sorted(absent)
    if unknown or missing:
        raise CheckpointError(
            f"{checkpoint}: not a checkpoint of this model: it lacks {missing[:3] or 'nothing'}, "
            f"and this model has no {unknown[:3] or 'nothing'}"
        )
    return dict(loaded)


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


def remove_old_checkpoints(run_directory: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints; 0 keeps all. Only rank 0 may call it."""
    for old in list_checkpoints(run_directory)[: -keep_last or None] if keep_last else ():
        doomed = old.with_name(f"partial-{old.name}")
        old.rename(doomed)
        shutil.rmtree(doomed)


def _model_state(chunks: Sequence[DistributedDataParallel]) -> dict[str, Any]:
    return {_chunk_key(n, chunks): unwrap(chunk).sharded_state_dict() for n, chunk in enumerate(chunks)}


def _weights_state(chunks: Sequence[DistributedDataParallel]) -> dict[str, Any]:
    """What is loaded of the model: its tensors. The rest is `_extra_state`, Transformer Engine's, and empty outside FP8."""
    states = _model_state(chunks).items()
    return {key: {name: shard for name, shard in state.items() if not isinstance(shard, ShardedObject)} for key, state in states}


def _set_model(chunks: Sequence[DistributedDataParallel], loaded: dict[str, Any]) -> None:
    for n, chunk in enumerate(chunks):
        model = unwrap(chunk)
        empty = {name: None for name in model.state_dict() if name.endswith("_extra_state")}
        model.load_state_dict(empty | loaded[_chunk_key(n, chunks)])


def _chunk_key(n: int, chunks: Sequence[DistributedDataParallel]) -> str:
    return f"model{n}" if len(chunks) > 1 else "model"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _publish(partial: Path, target: Path) -> None:
    """Flush every file, then give the folder its name: from here on the checkpoint counts."""
    for path in (*partial.rglob("*"), partial):
        _sync(path)
    enter(Phase.RENAMING)
    if target.exists():  # a damaged one, which did not count
        target.rename(target.with_name(f"damaged-{target.name}-{time.time_ns()}"))
    partial.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
