"""Saving while training goes on: a copy in host memory, written in the background, published when every rank's part is on the disk.

Weights and moments change only in the update, so the copy is made while the next forward and backward run, and the update waits
for what is left of it. Threads write it, never forked processes: those die with their rank and touch no device memory. Whether all
ranks have finished travels with the losses of each step, so no rank waits for another. A save that fails costs that save: the
checkpoint counts from its renaming on, and nothing before it is touched.
"""

import shutil
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from megatron_poro.config import RunConfig, save_run
from megatron_poro.conversion import hash_files, write_checksums, write_model_file
from megatron_poro.conversion.files import flush_directory, write_json
from megatron_poro.conversion.torch_dist import HeldChunk, WrittenFile, write_chunks, write_metadata
from megatron_poro.engine.paths import checkpoint_path, partial_path, remove_partials, set_aside
from megatron_poro.engine.phases import Phase, reached
from megatron_poro.engine.platform import Platform
from megatron_poro.engine.shards import Shard, saved_shards
from megatron_poro.errors import UnsavedError

FORMAT = 1
_SPARE_BYTES = 16 * 2**20
_ALIGNMENT = 64
_FIRST_SAFE_ROCM = (7, 1)
"""Earlier releases crash when host memory of the device is touched beside it while a checkpoint is written."""


@dataclass(frozen=True)
class Order:
    """A checkpoint to be written: the folder, and what rank 0 puts beside the tensors.

    `source` says where the weights came from, `state` is state.json, `common` megatron-core's common.pt. `began` is when it was
    asked for, in seconds of the monotonic clock.
    """

    target: Path
    config: RunConfig
    source: dict[str, Any]
    state: dict[str, Any]
    common: dict[str, Any]
    began: float = field(default_factory=time.monotonic)


class Listener(Protocol):
    """Hears on rank 0, from another thread, what became of a checkpoint."""

    def saved(self, order: Order) -> None:
        """The checkpoint counts."""

    def failed(self, target: Path, problem: str) -> None:
        """It was given up; the run goes on."""


class CheckpointSaver:
    """Saves checkpoints of the chunks and the optimizer it was made with, one at a time. Every rank must make its calls.

    When `asynchronous`, `start` returns at once; the loop then calls `wait_for_copy` before each update, tells the other ranks
    whether it is `unfinished`, and calls `finish` once none is. `stall_seconds` is what all that cost the loop so far.
    """

    def __init__(
        self,
        config: RunConfig,
        chunks: Sequence[DistributedDataParallel],
        optimizer: MegatronOptimizer,
        *,
        platform: Platform,
        listener: Listener,
    ) -> None:
        self._config, self._optimizer, self._listener = config, optimizer, listener
        self._saved = saved_shards(chunks, optimizer, vocab_size=config.model.vocab_size)
        self._copy = _HostCopy([shard for shard, _ in self._saved], platform)
        self._num_bytes = _sum_over_ranks(self._copy.num_bytes, platform)
        self.asynchronous = config.checkpoint.asynchronous and _can_write_beside(platform)
        self.stall_seconds = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._problem = ""
        self._order: Order | None = None
        self._writing: Future[WrittenFile | None] | None = None
        self._publishing: Future[None] | None = None

    @property
    def is_saving(self) -> bool:
        """Whether a checkpoint was started that `finish` has not taken over; the same on all ranks."""
        return self._writing is not None

    @property
    def unfinished(self) -> bool:
        """Whether this rank still writes its part."""
        return self._writing is not None and not self._writing.done()

    def start(self, step: int, *, source: dict[str, Any], state: dict[str, Any]) -> None:
        """Begin the checkpoint after `step` steps, once one that is still being written is done.

        Without room for it, or when the folder cannot be made, it is given up and the listener told.
        """
        began = time.monotonic()
        self.finish(wait=True)
        target = checkpoint_path(Path(self._config.run_directory), step)
        problem = [self._prepare(target) if dist.get_rank() == 0 else ""]
        dist.broadcast_object_list(problem)
        if problem[0]:
            self._give_up(target, problem[0])
        else:
            self._order = Order(target, self._config, source, {"format": FORMAT, **state}, _common_state(self._optimizer))
            self._copy.start()
            self._writing = self._thread.submit(self._write, partial_path(target))
            if not self.asynchronous:
                self.finish(wait=True)
        self.stall_seconds += time.monotonic() - began

    def wait_for_copy(self) -> None:
        """Return when the numbers that are being saved may change."""
        if self._writing is not None:
            began = time.monotonic()
            self._copy.hold_update()
            self.stall_seconds += time.monotonic() - began

    def finish(self, *, wait: bool = False) -> None:
        """Publish what all ranks have written; with `wait`, return when that is done, written or given up.

        Without `wait`, no rank may be `unfinished`.
        """
        if self._writing is not None and self._order is not None:
            parts, problems = self._gather(self._writing)
            order, self._order, self._writing = self._order, None, None
            if dist.get_rank() == 0:
                self._publishing = self._thread.submit(self._publish, order, parts, problems)
        if wait:
            if self._publishing is not None:
                self._publishing.result()
                self._publishing = None
            dist.barrier()

    def close(self) -> None:
        """Return once everything is written and published. Raises UnsavedError on every rank when the last save was given up."""
        self.finish(wait=True)
        self._thread.shutdown()
        problem = [self._problem]
        dist.broadcast_object_list(problem)
        if problem[0]:
            raise UnsavedError(
                f"the run ends unsaved: {problem[0]}; free space and start it again, it goes on from its last checkpoint"
            )

    def _prepare(self, target: Path) -> str:
        """Make the folder that the parts go into; what prevents it, if anything."""
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for problem in remove_partials(target.parent):
                print(f"warning: a leftover could not be deleted: {problem}", file=sys.stderr, flush=True)
            free = shutil.disk_usage(target.parent).free
            if free < self._num_bytes + _SPARE_BYTES:
                needed = f"it takes {self._num_bytes / 1e9:.3f} GB, and {_SPARE_BYTES / 1e9:.3f} are left to others"
                return f"{needed}; {free / 1e9:.3f} are free"
            partial_path(target).mkdir()
        except OSError as error:
            return str(error)
        return ""

    def _write(self, partial: Path) -> WrittenFile | None:
        """Write this rank's shards, and say what was written; None when it has none."""
        self._copy.complete()
        if not self._saved:
            return None
        chunks = [
            HeldChunk(shard.name, shard.shape, shard.offsets, shard.sizes, shard.numbers.dtype, held, aliases)
            for (shard, aliases), held in zip(self._saved, self._copy.tensors, strict=True)
        ]
        return write_chunks(partial / f"__{dist.get_rank()}_0.distcp", chunks, hashed=True)

    def _gather(self, writing: "Future[WrittenFile | None]") -> tuple[list[WrittenFile], list[str]]:
        """What all ranks have written, and what went wrong on any; on rank 0."""
        error = writing.exception()
        mine = writing.result() if error is None else f"rank {dist.get_rank()}: {error}"
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.gather_object(mine, gathered if dist.get_rank() == 0 else None)
        return [part for part in gathered if isinstance(part, WrittenFile)], [part for part in gathered if isinstance(part, str)]

    def _publish(self, order: Order, parts: Sequence[WrittenFile], problems: Sequence[str]) -> None:
        """Add the small files and give the folder its name: from here on the checkpoint counts."""
        partial = partial_path(order.target)
        try:
            if problems:
                raise OSError(problems[0])
            _complete(partial, order, parts)
            reached(Phase.RENAMING, order.state["step"])
            if order.target.exists():
                set_aside(order.target)
            partial.rename(order.target)
            flush_directory(order.target.parent, files=False)
        except Exception as error:  # whatever it is, it costs this checkpoint and not the run
            shutil.rmtree(partial, ignore_errors=True)
            self._give_up(order.target, str(error))
        else:
            self._problem = ""
            self._listener.saved(order)

    def _give_up(self, target: Path, problem: str) -> None:
        self._problem = problem
        if dist.get_rank() == 0:
            self._listener.failed(target, problem)


def _complete(partial: Path, order: Order, parts: Sequence[WrittenFile]) -> None:
    """Write all but the tensors, and put everything on the disk."""
    write_metadata(partial, parts, common=order.common)
    write_model_file(partial, order.config.model, order.source)
    save_run(order.config, partial / "config.toml")
    write_json(partial / "state.json", order.state)
    hashes = {part.name: {"bytes": part.num_bytes, "sha256": part.sha256} for part in parts}
    others = [path.name for path in partial.iterdir() if path.name not in hashes]
    write_checksums(partial, hashes | hash_files(partial, others))
    flush_directory(partial)


class _HostCopy:
    """Host memory for a rank's shards, and their way into it; `tensors` are the copies."""

    def __init__(self, shards: Sequence[Shard], platform: Platform) -> None:
        starts = np.cumsum([0] + [-(-shard.num_bytes // _ALIGNMENT) * _ALIGNMENT for shard in shards]).tolist()
        self.num_bytes = int(starts[-1])
        self._shards, self._starts, self._platform = shards, starts, platform
        self._ready = threading.Event()
        self._copied: torch.cuda.Event | None = None
        self.tensors: list[torch.Tensor] = []

    def start(self) -> None:
        """Begin a copy; on an accelerator it runs beside what is computed from here on."""
        self._ready.clear()
        if not self.tensors:
            memory = torch.empty(self.num_bytes, dtype=torch.uint8, pin_memory=not self._platform.is_cpu)
            self.tensors = [
                memory[start : start + shard.num_bytes].view(shard.numbers.dtype).view(shard.sizes)
                for shard, start in zip(self._shards, self._starts, strict=False)
            ]
        if not self._platform.is_cpu:
            stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for shard, held in zip(self._shards, self.tensors, strict=True):
                    held.view(-1).copy_(shard.numbers, non_blocking=True)
                self._copied = stream.record_event()

    def complete(self) -> None:
        """Return when the copy is whole. The writer's thread calls it, and on a CPU makes the copy."""
        try:
            if self._copied is not None:
                self._copied.synchronize()
            else:
                for shard, held in zip(self._shards, self.tensors, strict=True):
                    np.copyto(held.view(-1).view(torch.uint8).numpy(), shard.numbers.view(torch.uint8).numpy())
        finally:
            self._ready.set()

    def hold_update(self) -> None:
        """Have whatever changes the numbers wait for the copy: the device's stream, or this thread on a CPU."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)
        else:
            self._ready.wait()


def _common_state(optimizer: MegatronOptimizer) -> dict[str, Any]:
    """What is the same on every rank: the parameter groups with their number of updates, as megatron-core keeps them."""
    return {"optimizer": {**optimizer.state_dict(), "param_state_sharding_type": "fully_reshardable"}}


def _can_write_beside(platform: Platform) -> bool:
    if platform.kind != "rocm":
        return True
    release = tuple(int(part) for part in str(torch.version.hip).split(".")[:2])
    return release >= _FIRST_SAFE_ROCM


def _sum_over_ranks(number: int, platform: Platform) -> int:
    total = torch.tensor(number, dtype=torch.int64, device=platform.device)
    dist.all_reduce(total)
    return int(total)
