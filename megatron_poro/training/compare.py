"""Ranks compared with each other now and then: their speed, and the weights of those that hold the same."""

import math
import socket
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel

from megatron_poro.config import FaultsConfig
from megatron_poro.engine import phases
from megatron_poro.engine.fingerprint import hash_weights
from megatron_poro.engine.groups import gather_over_world, gather_texts
from megatron_poro.engine.phases import Phase
from megatron_poro.engine.platform import Platform
from megatron_poro.engine.probe import DeviceProbe, device_name
from megatron_poro.errors import WeightsError
from megatron_poro.topology import Layout
from megatron_poro.training.copies import describe_differing, find_differing
from megatron_poro.training.stragglers import Straggler, Work, find_stragglers, summarise

PROBES = 8
"""Steps before a comparison of speeds after each of which the device is measured."""


class RankComparison:
    """Compares the ranks of a run after its steps. Every rank must have one and ask it after every step."""

    def __init__(self, faults: FaultsConfig, layout: Layout, platform: Platform, chunks: Sequence[DistributedDataParallel]) -> None:
        self._faults = faults
        self._layout = layout
        self._platform = platform
        self._chunks = chunks
        self._probe = DeviceProbe(platform)
        self._work: list[Work] = []
        self._spent = (0.0, 0.0)
        self._checked = -1

    def after_step(self, step: int) -> Iterator[dict[str, Any]]:
        """Records for the metrics. Raises WeightsError, on all ranks, when copies of the weights differ."""
        if self._layout.world_size == 1:
            return
        phases.enter(Phase.CHECKING)
        weights_every = self._faults.weight_hash_every_steps
        if weights_every and step % weights_every == 0:
            self._check_weights(step)
        every = self._faults.straggler_every_steps
        if not every:
            return
        self._note_work()
        if -step % every < PROBES:
            self._probe.measure()
        if step % every == 0:
            yield from self._compare_speed()

    def before_save(self, step: int) -> None:
        """Raise WeightsError, on all ranks, when copies of the weights differ: no checkpoint is written of weights not compared."""
        if self._layout.world_size > 1 and self._faults.weight_hash_every_steps and self._checked != step:
            phases.enter(Phase.CHECKING)
            self._check_weights(step)

    def _check_weights(self, step: int) -> None:
        gathered = gather_over_world(hash_weights(self._chunks)).tolist()
        found = find_differing([(all_of_it, shared) for all_of_it, shared in gathered], self._layout)
        if found:
            raise WeightsError(describe_differing(found, gather_texts(self._name()), step))
        self._checked = step

    def _note_work(self) -> None:
        spent = (phases.seconds_in(Phase.DATA), phases.seconds_in(Phase.FORWARD))
        data, forward = (now - before for now, before in zip(spent, self._spent, strict=True))
        self._spent = spent
        self._work.append(Work(data, forward, 0.0, phases.last_step_seconds()))

    def _compare_speed(self) -> Iterator[dict[str, Any]]:
        data, forward, _, step = (statistics.median(values) for values in zip(*self._work, strict=True))
        mine = torch.tensor([data, forward, self._probe.take_median(), step], dtype=torch.float64, device=self._platform.device)
        self._work.clear()
        work = [Work(*values) for values in gather_over_world(mine).tolist()]
        summary = summarise(work)
        slowest = {name: values["most_seconds"] / (values["median_seconds"] or math.inf) for name, values in summary.items()}
        yield {"event": "speed", "slowest": slowest, **summary}
        found = find_stragglers(work, self._layout, self._faults.straggler_percent)
        if found:
            yield {"event": "stragglers", "ranks": self._tell(found)}

    def _tell(self, found: Sequence[Straggler]) -> list[dict[str, Any]]:
        names = gather_texts(self._name())
        if dist.get_rank() == 0:
            for one in found:
                print(f"warning: {one.describe(names[one.rank])}", file=sys.stderr, flush=True)
        return [{**vars(one), "name": names[one.rank]} for one in found]

    def _name(self) -> str:
        return f"rank {dist.get_rank()} on {socket.gethostname()} ({device_name(self._platform)})"
