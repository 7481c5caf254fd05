"""Logits of converted checkpoints from our engine, through the pipeline schedule, at any layout.

    python -m tests.engine.logits_program OUT CHECKPOINT LAYOUT [CHECKPOINT LAYOUT ...]

LAYOUT is TENSORxPIPELINExVIRTUAL_STAGES, with `+sequence` for sequence parallelism. Each pair writes
OUT/<name of CHECKPOINT>-LAYOUT.safetensors: for each of `LENGTHS` the logits [batch, length, vocab] of `token_ids(length)`.
Ranks are forked from one process, so that megatron-core is imported once. Runs on the CPU alone.
"""

import multiprocessing
import socket
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from megatron_poro.config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainingConfig,
)
from megatron_poro.conversion import read_model_file
from megatron_poro.engine.launch import World
from megatron_poro.engine.platform import Platform, start_platform
from megatron_poro.topology import Layout

VOCAB_SIZE = 509
LENGTHS = (16, 64, 65, 300)
BATCH_SIZE, MICRO_BATCH_SIZE = 8, 2
"""Four different microbatches, which two interleaved stages could mix up."""


def token_ids(length: int) -> torch.Tensor:
    """Random token ids, the same in every process: int64 [batch, length]."""
    return torch.randint(VOCAB_SIZE, (BATCH_SIZE, length), generator=torch.Generator().manual_seed(length))


def main(out: str, *pairs: str) -> None:
    """Run each pair on its own gloo processes."""
    torch.set_num_threads(1)
    platform = start_platform(0)
    import megatron_poro.engine.checkpoint
    import megatron_poro.engine.optimizer  # noqa: F401

    for checkpoint, layout in zip(pairs[::2], pairs[1::2], strict=True):
        config = build_config(Path(checkpoint), layout)
        run_layout(config, platform, Path(out) / f"{Path(checkpoint).name}-{layout}.safetensors")


def build_config(checkpoint: Path, layout: str) -> RunConfig:
    """A run of the checkpoint's own model in fp32 at `layout`."""
    sizes, _, sequence = layout.partition("+")
    tensor, pipeline, virtual_stages = map(int, sizes.split("x"))
    return RunConfig(
        run_directory="",
        model=read_model_file(checkpoint)[0],
        parallel=ParallelConfig(
            tensor=tensor, pipeline=pipeline, data=1, virtual_stages=virtual_stages, sequence=sequence == "sequence"
        ),
        data=DataConfig(sequence_length=max(LENGTHS), sources=()),
        training=TrainingConfig(steps=1, global_batch_size=BATCH_SIZE, micro_batch_size=MICRO_BATCH_SIZE, precision="fp32"),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        checkpoint=CheckpointConfig(initial=str(checkpoint)),
    )


def run_layout(config: RunConfig, platform: Platform, target: Path) -> None:
    """The logits of one layout."""
    size = config.parallel.tensor * config.parallel.pipeline
    start_ranks(run_rank, (config, target), size, platform, name=target.stem)


def start_ranks(program: Callable[..., None], words: tuple[Any, ...], size: int, platform: Platform, *, name: str) -> None:
    """Fork ranks that run `program(*words, world, platform)` and wait for them; the first that fails ends the others and this."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, fd = listener.getsockname()[1], listener.fileno()
        worlds = [World(rank, size, rank, port=port, listen_fd=fd, is_local=True) for rank in range(size)]
        fork = multiprocessing.get_context("fork")
        jobs = [fork.Process(target=program, args=(*words, world, platform), daemon=True) for world in worlds]
        for job in jobs:
            job.start()
    running = {job.sentinel: job for job in jobs}
    while running:
        for sentinel in wait(list(running)):
            job = running.pop(sentinel)  # type: ignore[arg-type]
            job.join()
            if job.exitcode:
                sys.exit(f"{name}: a rank ended with {job.exitcode}")  # daemons end with this process


def run_rank(config: RunConfig, target: Path, world: World, platform: Platform) -> None:
    """One process of a layout: groups, model and weights as `poro train` makes them, then the logits."""
    from megatron_poro.engine.checkpoint import load_weights
    from megatron_poro.engine.groups import holds_loss, start_groups, stop_groups
    from megatron_poro.engine.model import build_model
    from megatron_poro.engine.optimizer import build_optimizer

    parallel = config.parallel
    layout = Layout(parallel.tensor, parallel.pipeline, parallel.data, parallel.virtual_stages)
    start_groups(world, layout, platform, timeout_seconds=60)
    chunks: list[torch.nn.Module] = [*build_model(config, layout, platform)]
    load_weights(Path(config.checkpoint.initial), config.model, chunks, build_optimizer(config, chunks))
    for chunk in chunks:
        chunk.eval()
    logits = {str(length): compute_logits(chunks, config, length) for length in LENGTHS}
    if holds_loss():
        save_file(logits, target)
    stop_groups()


@torch.no_grad()
def compute_logits(chunks: list[torch.nn.Module], config: RunConfig, length: int) -> torch.Tensor:
    """Logits [batch, length, vocab] on the last stage, nothing of use on the others. Every rank must call it."""
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    # Sequence parallelism takes multiples of the tensor ranks alone; what follows a token does not change its logits.
    padding = -length % config.parallel.tensor if config.parallel.sequence else 0
    tokens = torch.nn.functional.pad(token_ids(length), (0, padding))
    iterators = [iter(tokens.split(MICRO_BATCH_SIZE)) for _ in chunks]
    outputs = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=BATCH_SIZE // MICRO_BATCH_SIZE,
        seq_length=length + padding,
        micro_batch_size=MICRO_BATCH_SIZE,
        forward_only=True,
    )
    if not outputs:
        return torch.empty(0)
    whole: torch.Tensor = gather_from_tensor_model_parallel_region(torch.cat(outputs))  # [batch, seq, padded vocab]
    return whole[:, :length, : config.model.vocab_size].contiguous()


def forward_step(microbatches: Iterator[torch.Tensor], model: torch.nn.Module) -> tuple[torch.Tensor, None]:
    """A chunk's output, which on the last chunk is logits; without a loss function the schedule returns them as they are."""
    tokens = next(microbatches)
    return model(tokens, torch.arange(tokens.shape[1])[None], None), None


if __name__ == "__main__":
    main(*sys.argv[1:])
