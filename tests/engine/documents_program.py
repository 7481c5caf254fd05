"""Losses of each token from our engine, with attention and positions that end at documents or not, at any layout.

    python -m tests.engine.documents_program OUT CHECKPOINT JOB [JOB ...]

JOB is a layout as in `logits_program`, with `+mask`, `+positions`, `+recompute`. Each writes OUT/JOB.safetensors: `losses` [batch,
seq] of `rows()`. Runs on the CPU alone.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from megatron_poro.config import RunConfig
from megatron_poro.engine.launch import World
from megatron_poro.engine.platform import Platform, start_platform
from megatron_poro.topology import Layout
from tests.engine.logits_program import BATCH_SIZE, MICRO_BATCH_SIZE, VOCAB_SIZE, build_config, start_ranks

LENGTH = 96
EOD = 3


def rows() -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Token ids [batch, LENGTH + 1] with documents of many lengths; one row has none, others start, end and stutter with EOD."""
    rng = np.random.Generator(np.random.PCG64(5))
    tokens = rng.integers(EOD + 1, VOCAB_SIZE, (BATCH_SIZE, LENGTH + 1), dtype=np.uint16)
    for row in range(1, BATCH_SIZE):
        tokens[row, rng.integers(0, LENGTH, row)] = EOD
    tokens[1, 0] = tokens[2, LENGTH - 1] = tokens[3, LENGTH] = EOD
    tokens[4, 40:43] = EOD
    return tokens


def main(out: str, checkpoint: str, *jobs: str) -> None:
    """Run each job on its own gloo processes."""
    torch.set_num_threads(1)
    platform = start_platform(0)
    import megatron_poro.engine.checkpoint
    import megatron_poro.engine.optimizer  # noqa: F401

    for job in jobs:
        layout, *words = job.split("+")
        config = build_config(Path(checkpoint), f"{layout}+sequence" if "sequence" in words else layout)
        data = replace(
            config.data,
            sequence_length=LENGTH,
            reset_attention_mask="mask" in words,
            reset_position_ids="positions" in words,
            eod_token_id=EOD,
        )
        training = replace(config.training, recompute="full" if "recompute" in words else "none")
        config = replace(config, data=data, training=training)
        size = config.parallel.tensor * config.parallel.pipeline
        start_ranks(run_rank, (config, Path(out) / f"{job}.safetensors"), size, platform, name=job)


def run_rank(config: RunConfig, target: Path, world: World, platform: Platform) -> None:
    """One process of a layout: groups, model and weights as `poro train` makes them, then the losses."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megatron_poro.engine.checkpoint import load_weights
    from megatron_poro.engine.documents import schedule_shape
    from megatron_poro.engine.groups import holds_loss, start_groups, stop_groups
    from megatron_poro.engine.model import build_model, unwrap
    from megatron_poro.engine.optimizer import build_optimizer

    parallel = config.parallel
    layout = Layout(parallel.tensor, parallel.pipeline, parallel.data, parallel.virtual_stages)
    start_groups(world, layout, platform, timeout_seconds=60)
    chunks = build_model(config, layout, platform)
    load_weights(Path(config.checkpoint.initial), config.model, chunks, build_optimizer(config, chunks))
    microbatches = np.split(rows(), BATCH_SIZE // MICRO_BATCH_SIZE)
    length, batch = schedule_shape(microbatches[0], unwrap(chunks[0]).documents)
    iterators = [iter(microbatches) for _ in chunks]
    outputs = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=list(chunks) if len(chunks) > 1 else chunks[0],
        num_microbatches=len(microbatches),
        seq_length=length,
        micro_batch_size=batch,
        forward_only=False,
    )
    if holds_loss():
        save_file({"losses": torch.cat(outputs)}, target)
    stop_groups()


def forward_step(microbatches: Iterator[Any], model: torch.nn.Module) -> tuple[torch.Tensor, Any]:
    """A chunk's output; the schedule keeps the losses of each token."""
    from megatron_poro.engine.documents import model_inputs
    from megatron_poro.engine.model import unwrap

    tokens = next(microbatches)
    inputs = model_inputs(tokens, unwrap(model).documents, torch.device("cpu"))
    losses = model(inputs.tokens, inputs.positions, None, labels=inputs.labels, packed_seq_params=inputs.packed)
    return losses, lambda losses: (losses.mean(), losses.detach().view(len(tokens), -1).clone())


if __name__ == "__main__":
    main(*sys.argv[1:])
