"""Exact counts: the real megatron-core model of any rank, on the meta device, in a fake process group of the planned size.

    python -m megatron_poro.planning.exact RUN.toml WORLD_SIZE [RANK ...]

runs in a process of its own, as groups and the CPU platform are made once a process, and prints JSON; `count_exactly` starts it.
Without ranks it takes one of each pipeline stage, which is every kind of rank there is.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from megatron_poro.config import RunConfig, load_run, save_run
from megatron_poro.planning.endurance import BYTES_PER_PARAMETER
from megatron_poro.topology import Coordinates, Layout, build_layout, locate_rank, rank_at


@dataclass(frozen=True)
class RankCount:
    """Numbers of a rank: parameters, those of them that are cut over the tensor axis, and its shard of the optimizer's."""

    rank: int
    stage: int
    parameters: int
    cut_parameters: int
    optimizer_shard: int


@dataclass(frozen=True)
class ExactCounts:
    """Ranks, and the stages that they are of, as the checkpoint has them: all of the model by default."""

    ranks: tuple[RankCount, ...]
    parameters: int
    checkpoint_bytes: int


def count_exactly(
    config: RunConfig, layout: Layout, *, ranks: Sequence[int] = (), timeout_seconds: float = 120.0
) -> ExactCounts | str:
    """The counts of a run file on a layout, or why there are none: no torch here, or it took too long."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.toml"
        save_run(_on_layout(config, layout), path)
        words = [sys.executable, "-m", "megatron_poro.planning.exact", str(path), str(layout.world_size), *map(str, ranks)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_seconds, check=False, env=environment)
        except subprocess.TimeoutExpired:
            return f"building the model took more than {timeout_seconds:.0f} s"
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return (done.stderr.strip().splitlines() or ["no answer"])[-1]
    found = json.loads(lines[-1])
    return ExactCounts(tuple(RankCount(**each) for each in found["ranks"]), found["parameters"], found["checkpoint_bytes"])


def build_counts(config: RunConfig, layout: Layout, ranks: list[int]) -> ExactCounts:
    """Build the ranks' models, one after the other, in this process. Imports torch."""
    chosen = ranks or [rank_at(Coordinates(data=0, pipeline=stage, tensor=0), layout) for stage in range(layout.pipeline)]
    counts = tuple(_count_rank(config, layout, rank) for rank in chosen)
    once = {count.stage: count for count in counts}
    parameters = sum(each.parameters + each.cut_parameters * (layout.tensor - 1) for each in once.values())
    return ExactCounts(counts, parameters, BYTES_PER_PARAMETER * parameters)


def _count_rank(config: RunConfig, layout: Layout, rank: int) -> RankCount:
    """Build a rank's model and gradient buffers as training does, but on the meta device, which has shapes and no bytes."""
    from unittest.mock import patch

    import torch

    from megatron_poro.engine.launch import World
    from megatron_poro.engine.platform import Platform, start_platform

    platform, meta = start_platform(0), torch.device("meta")
    from megatron_poro.engine import model as engine_model
    from megatron_poro.engine.groups import stop_groups

    describe = engine_model.build_transformer_config

    def without_weights(*words: Any) -> Any:
        transformer = describe(*words)
        transformer.perform_initialization = False
        return transformer

    _start_fake_groups(World(rank, layout.world_size, 0), layout, platform)
    with meta, patch.object(torch.cuda, "current_device", lambda: meta):
        with patch.object(engine_model, "build_transformer_config", without_weights):
            chunks = engine_model.build_model(config, layout, Platform(platform.kind, meta, platform.backend))
        shard = sum(_shard_size(buffer) for chunk in chunks for buffer in chunk.buffers)
    stop_groups()
    weights = [weight for chunk in chunks for weight in chunk.module.parameters()]
    return RankCount(
        rank=rank,
        stage=locate_rank(rank, layout).pipeline,
        parameters=sum(weight.numel() for weight in weights),
        cut_parameters=sum(weight.numel() for weight in weights if weight.dim() > 1),  # norms are whole on every rank
        optimizer_shard=shard,
    )


def _shard_size(buffer: Any) -> int:
    """Numbers of a gradient buffer that this rank's distributed optimizer keeps, by megatron-core's own division."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    ranges = DistributedOptimizer._build_gbuf_range_map(buffer)
    return sum(part["param"].size for buckets in ranges.values() for bucket in buckets for part in bucket["param_map"].values())


def _start_fake_groups(world: object, layout: Layout, platform: object) -> None:
    """`start_groups` with torch's fake backend, which answers every collective at once."""
    from unittest.mock import patch

    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from megatron_poro.engine.groups import start_groups

    join = dist.init_process_group

    def fake(backend: str, **settings: object) -> None:
        join("fake", **{**settings, "store": FakeStore()})  # type: ignore[arg-type]

    with patch.object(dist, "init_process_group", fake):
        start_groups(world, layout, platform)  # type: ignore[arg-type]


def _on_layout(config: RunConfig, layout: Layout) -> RunConfig:
    parallel = replace(
        config.parallel,
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        data=layout.data,
        virtual_stages=layout.virtual_stages,
        context=layout.context,
        sequence=layout.tensor > 1,
    )
    return replace(config, parallel=parallel)


def main(arguments: list[str]) -> None:
    """Count, and print one line of JSON."""
    config = load_run(Path(arguments[0]))
    parallel = config.parallel
    layout = build_layout(
        parallel.tensor, parallel.pipeline, parallel.virtual_stages, world_size=int(arguments[1]), context=parallel.context
    )
    print(json.dumps(asdict(build_counts(config, layout, [int(word) for word in arguments[2:]]))))


if __name__ == "__main__":
    main(sys.argv[1:])
