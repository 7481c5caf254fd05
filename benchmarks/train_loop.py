"""Our loop beside a bare one on megatron-core, for benchmarks/train.py, which starts it.

`poro train`'s own loop runs, with data, logging, metrics and checks, and before each of its steps a bare one is taken on the same
model. Each line on stdin asks for a pair; the answer is a line of JSON with the seconds of both.
"""

import sys

sys.path.pop(0)  # this folder: its tokenize.py must not stand in for the standard library's

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.train_contestants import VOCAB, listen, poro_config, read_arguments


def run_loop(args: argparse.Namespace) -> None:
    """`poro train` on random tokens, with a step of a bare loop on megatron-core before each of its steps; both are timed."""
    listen(args)
    from data_indexing.writer import IndexedWriter
    from megatron_poro.engine.launch import World
    from megatron_poro.engine.platform import start_platform

    world = World(0, 1, 0, port=args.port, listen_fd=args.listen_fd, is_local=True)
    platform = start_platform(0)
    from megatron_poro.topology import Layout
    from megatron_poro.training import loop
    from megatron_poro.training.signals import Requests

    take_step, last = loop._take_step, clocks()

    def take_both(trainer: Any) -> Any:
        """Called once in each turn of the loop; what passes from one bare step to the next is the loop's."""
        nonlocal last
        began = clocks()
        take_bare_step(trainer.chunks, trainer.optimizer, args.seq)
        ended = clocks()
        taken = {
            "seconds": began[0] - last[0],
            "cpu_seconds": began[1] - last[1],
            "bare_seconds": ended[0] - began[0],
            "bare_cpu_seconds": ended[1] - began[1],
        }
        num_steps.append(1)
        if len(num_steps) > args.warm_up and not answer(taken):
            trainer.requests.stop = True
        last = clocks()
        return take_step(trainer)

    num_steps: list[int] = []
    loop._take_step = take_both
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with IndexedWriter(folder / "random", np.uint16) as writer:
            for _ in range(200):
                writer.add_document(np.random.randint(0, VOCAB, 4 * args.seq).astype(np.uint16))
        config = poro_config(args.seq, "fp32" if args.precision == "fp32" else "bf16", folder)
        (folder / "run").mkdir()
        print(json.dumps({"ready": True}), flush=True)
        requests = Requests(folder / "run")
        loop.train(config, world, Layout(1, 1, 1, 1), platform, requests=requests, last_step=args.warm_up + 1000)


def clocks() -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    return time.perf_counter(), time.process_time()


def answer(values: dict[str, float]) -> bool:
    """Wait for the next line and answer it; False at the end of stdin."""
    if not sys.stdin.readline():
        return False
    print(json.dumps(values), flush=True)
    return True


def take_bare_step(chunks: Any, optimizer: Any, sequence: int) -> None:
    """megatron-core's schedule and optimizer with nothing about them."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megatron_poro.engine.optimizer import prepare_update, update

    for chunk in chunks:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    get_forward_backward_func()(
        forward_step_func=forward_bare,
        data_iterator=iter([torch.randint(VOCAB, (1, sequence + 1))]),
        model=chunks[0],
        num_microbatches=1,
        seq_length=sequence,
        micro_batch_size=1,
        forward_only=False,
    )
    update(optimizer, prepare_update(optimizer))


def forward_bare(batches: Iterator[torch.Tensor], model: nn.Module) -> Any:
    """The least that the schedule accepts."""
    tokens = next(batches)
    positions = torch.arange(tokens.size(1) - 1)[None]
    losses = model(tokens[:, :-1].contiguous(), positions, None, labels=tokens[:, 1:].contiguous())
    return losses, lambda losses: (losses.mean(), losses.detach().sum())


if __name__ == "__main__":
    run_loop(read_arguments("loop"))
    print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)
