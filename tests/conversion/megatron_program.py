"""What unmodified megatron-core does with checkpoints of ours: load them strictly in any layout, compute, save again.

    python -m tests.conversion.megatron_program OUT CHECKPOINT TENSORxPIPELINE [CHECKPOINT TENSORxPIPELINE ...]

Each pair loads CHECKPOINT with RAISE_ALL and saves it to OUT/TENSORxPIPELINE; 1x1 also writes OUT/logits.pt.
Ranks are forked from one process, so that megatron-core is imported once.
"""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from megatron_poro.config import ModelConfig

TOKENS = [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315]


def main(out: str, *pairs: str) -> None:
    """Run each pair on its own gloo processes."""
    from megatron_poro.engine.platform import install_cpu_platform

    install_cpu_platform()
    import megatron.core.dist_checkpointing
    import megatron.core.models.gpt  # noqa: F401

    for checkpoint, layout in zip(pairs[::2], pairs[1::2], strict=True):
        run_layout(checkpoint, layout, Path(out))


def run_layout(checkpoint: str, layout: str, out: Path) -> None:
    """Fork the ranks of one layout and wait for them."""
    tensor, pipeline = map(int, layout.split("x"))
    (out / layout).mkdir(parents=True)
    fork = multiprocessing.get_context("fork")
    arguments = [(rank, tensor, pipeline, checkpoint, out / layout) for rank in range(tensor * pipeline)]
    jobs = [fork.Process(target=run_rank, args=each) for each in arguments]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    if any(job.exitcode for job in jobs):
        sys.exit(f"{layout} failed")


def run_rank(rank: int, tensor: int, pipeline: int, checkpoint: str, target: Path) -> None:
    """One process of a layout."""
    import torch
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing.validation import StrictHandling

    from megatron_poro.conversion import read_model_file

    torch.set_num_threads(1)
    size = tensor * pipeline
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size))
    rendezvous = f"file://{target}.rendezvous"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
    parallel_state.initialize_model_parallel(tensor, pipeline)
    model = build_gpt(read_model_file(Path(checkpoint))[0])
    state = dist_checkpointing.load(weights_of(model), checkpoint, strict=StrictHandling.RAISE_ALL)
    model.load_state_dict(state, strict=True)
    if size == 1:
        torch.save(compute_logits(model), target.parent / "logits.pt")
    dist_checkpointing.save(model.sharded_state_dict(), str(target))
    torch.distributed.barrier()


def weights_of(model: Any) -> dict[str, Any]:
    """The sharded state without `_extra_state`, which is None outside FP8 and differs between layer implementations."""
    return {name: shard for name, shard in model.sharded_state_dict().items() if not name.endswith("_extra_state")}


def build_gpt(model: ModelConfig) -> Any:
    """megatron-core's GPTModel of this rank, with its own local layers."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from megatron_poro.topology import Layout, padded_vocab_size
    from tests.conversion.megatron_ranks import build_chunks

    model_parallel_cuda_manual_seed(7)
    tensor = parallel_state.get_tensor_model_parallel_world_size()
    layout = Layout(tensor, parallel_state.get_pipeline_model_parallel_world_size())
    return build_chunks(model, layout, padded_vocab_size(model.vocab_size, tensor))[0]


def compute_logits(model: Any) -> Any:
    """Logits of `TOKENS`, [seq, vocab]."""
    import torch

    tokens = torch.tensor([TOKENS])  # [batch, seq]
    positions = torch.arange(len(TOKENS))[None]
    mask = torch.ones(len(TOKENS), len(TOKENS), dtype=torch.bool).triu(1)[None, None]  # True where attention is forbidden
    with torch.no_grad():
        return model(tokens, positions, mask)[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
