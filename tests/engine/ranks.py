"""A function on several gloo processes, each of which saves what it returns."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run_on_ranks(function: Callable[[int, int], Any], size: int, folder: Path) -> list[Any]:
    """The results of `function(rank, size)`, a module's function, in the order of the ranks."""
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=_run, args=(function, rank, size, folder)) for rank in range(size)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0] * size
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]


def _run(function: Callable[[int, int], Any], rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), size), rank=rank, world_size=size)
    torch.save(function(rank, size), folder / f"{rank}.pt")
    dist.destroy_process_group()
