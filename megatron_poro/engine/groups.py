"""Process groups: made here and nowhere else."""

import datetime
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_poro.engine.launch import World
from megatron_poro.engine.platform import Platform
from megatron_poro.errors import PoroError
from megatron_poro.topology import Layout

Answer = TypeVar("Answer")


def start_groups(world: World, layout: Layout, platform: Platform, *, timeout_seconds: float = 1200.0) -> None:
    """Join the other processes and make the layout's groups. Every rank must call it; it works at world size 1."""
    store = None
    if world.listen_fd is not None or world.is_local:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = dist.TCPStore(
            world.address,
            world.port,
            world.size,
            is_master=world.rank == 0,
            master_listen_fd=world.listen_fd if world.rank == 0 else None,
            wait_for_workers=False,
        )
    timeout = datetime.timedelta(seconds=timeout_seconds)
    dist.init_process_group(platform.backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_stages if layout.virtual_stages > 1 else None,
        context_parallel_size=layout.context,
        create_gloo_process_groups=False,
    )


def stop_groups() -> None:
    """Leave the groups after a good end. After an exception do not call it: other ranks may be anywhere."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def holds_loss() -> bool:
    """True where losses are reported: on the last stage, the first of each tensor group; context ranks report their tokens each."""
    return bool(parallel_state.is_pipeline_last_stage(ignore_virtual=True) and parallel_state.get_tensor_model_parallel_rank() == 0)


def sum_over_world(values: torch.Tensor) -> torch.Tensor:
    """The sum of `values` over all ranks, on every rank. Every rank must call it."""
    dist.all_reduce(values)
    return values


def first_rank_decides(decide: Callable[[], Answer]) -> Answer:
    """What `decide` returns on rank 0, on every rank. Every rank must call it; a PoroError that it raises is raised on all."""
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = decide()
        except PoroError as error:
            answer[1] = error
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return cast(Answer, answer[0])


def gather_over_world(values: torch.Tensor) -> torch.Tensor:
    """Every rank's `values` [n] as [world, n], on every rank. Every rank must call it."""
    gathered = values.new_empty(dist.get_world_size() * values.numel())
    dist.all_gather_into_tensor(gathered, values)
    return gathered.view(-1, values.numel())


def gather_texts(text: str) -> list[str]:
    """Every rank's `text`, on every rank; slow, for rare occasions. Every rank must call it."""
    texts: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    return texts
