"""A run's checkpoint through megatron-core's own loader, compared with what our loader made of it.

    python -m tests.engine.reload_program CHECKPOINT LAYOUT [LAYOUT ...]

LAYOUT is TENSORxPIPELINExDATA. Prints for each layout and rank how many tensors of weights and optimizer are equal; exits with 1
when one is not.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from megatron_poro.config import RunConfig, load_run
from megatron_poro.engine.launch import World
from megatron_poro.engine.platform import Platform, start_platform
from megatron_poro.topology import Layout
from tests.engine.logits_program import start_ranks


def main(checkpoint: str, *layouts: str) -> None:
    """Run each layout on its own gloo processes."""
    torch.set_num_threads(1)
    platform = start_platform(0)
    import megatron_poro.engine.checkpoint
    import megatron_poro.engine.optimizer  # noqa: F401

    config = load_run(Path(checkpoint) / "config.toml")
    for name in layouts:
        layout = Layout(*map(int, name.split("x")))
        start_ranks(run_rank, (config, layout, Path(checkpoint)), layout.world_size, platform, name=name)


def run_rank(config: RunConfig, layout: Layout, checkpoint: Path, world: World, platform: Platform) -> None:
    """Load twice, compare."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedObject
    from megatron.core.dist_checkpointing.validation import StrictHandling

    from megatron_poro.engine.checkpoint import load_training
    from megatron_poro.engine.groups import start_groups, stop_groups
    from megatron_poro.engine.model import build_model, unwrap
    from megatron_poro.engine.optimizer import build_optimizer
    from megatron_poro.engine.paths import read_state

    start_groups(world, layout, platform, timeout_seconds=60)
    chunks = build_model(config, layout, platform)
    optimizer = build_optimizer(config, chunks)
    load_training(checkpoint, config.model, chunks, optimizer, num_updates=read_state(checkpoint)["updates"])
    ours = {name: tensor.clone() for name, tensor in everything(chunks, optimizer, config).items()}
    steps = [group["step"] for group in optimizer.param_groups]

    for tensor in everything(chunks, optimizer, config).values():
        tensor.zero_()
    (chunk,) = chunks
    model = {key: shard for key, shard in unwrap(chunk).sharded_state_dict().items() if not isinstance(shard, ShardedObject)}
    content: dict[str, Any] = {"model": model}
    metadata = {"distrib_optim_sharding_type": "fully_reshardable", "distrib_optim_fully_reshardable_mem_efficient": False}
    content["optimizer"] = optimizer.sharded_state_dict(dict(content), is_loading=True, metadata=metadata)
    loaded = dist_checkpointing.load(content, str(checkpoint), strict=StrictHandling.RAISE_ALL)
    unwrap(chunk).load_state_dict(loaded["model"], strict=False)
    optimizer.load_state_dict(loaded["optimizer"])
    theirs = everything(chunks, optimizer, config)
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    if different or [group["step"] for group in optimizer.param_groups] != steps or not any(t.any() for t in ours.values()):
        sys.exit(f"rank {world.rank}: {different} differ, or steps do")
    print(f"{layout}, rank {world.rank}: {len(ours)} equal", flush=True)
    stop_groups()


def everything(chunks: Any, optimizer: Any, config: RunConfig) -> dict[str, torch.Tensor]:
    """The memory of this rank that a checkpoint fills, by name and place."""
    from megatron_poro.engine.shards import state_shards, weight_shards

    vocab_size = config.model.vocab_size
    states = state_shards(chunks, optimizer, vocab_size=vocab_size)
    shards = [*weight_shards(chunks, vocab_size=vocab_size), *(shard for kind in states for shard in states[kind])]
    return {f"{shard.name} at {shard.offsets}": shard.numbers for shard in shards}


if __name__ == "__main__":
    main(*sys.argv[1:])
