"""The numbers of a step beside its loss: what its parts took, what the ranks hold in memory, and what that makes of the devices."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_poro.config import RunConfig
from megatron_poro.engine import phases
from megatron_poro.engine.phases import IN_STEP, Phase
from megatron_poro.engine.platform import Platform
from megatron_poro.engine.probe import measure_tflops
from megatron_poro.observe.flops import flops_per_token, peak_tflops

OF_RANKS = ("data_wait_seconds", "device_memory_bytes", "host_memory_bytes")
"""What every rank tells of itself at every step; the largest counts."""
SHOWN_PHASES = (*sorted(IN_STEP), Phase.CHECKING)


class StepMeasures:
    """Measures one rank. Every rank has one; rank 0's numbers and the largest of all ranks reach the records."""

    def __init__(self, config: RunConfig, platform: Platform, *, rank: int, world_size: int) -> None:
        self._platform = platform
        self._rank, self._world_size = rank, world_size
        self._flops = flops_per_token(config.model, config.data.sequence_length)
        self._device = "cpu" if platform.is_cpu else torch.cuda.get_device_name(platform.device)
        # A CPU has no peak that means much: what it reaches, among the other ranks on it, is measured.
        self._peak = (measure_tflops(platform) if platform.is_cpu else peak_tflops(self._device)) if rank == 0 else None
        self._statm = Path("/proc/self/statm")
        self._spent = phases.seconds_by_phase()
        self._stalled = 0.0

    def describe(self) -> dict[str, Any]:
        """What the record of a start says of the devices."""
        return {
            "world_size": self._world_size,
            "device": self._device,
            "peak_tflops": self._peak,
            "flops_per_token": vars(self._flops),
        }

    def own(self, data_wait_seconds: float) -> list[float]:
        """This rank's numbers at its place among those of all ranks, which are 0: summed over the ranks they are all there."""
        numbers = [0.0] * (len(OF_RANKS) * self._world_size)
        first = len(OF_RANKS) * self._rank
        device = 0.0 if self._platform.is_cpu else float(torch.cuda.max_memory_allocated(self._platform.device))
        numbers[first : first + len(OF_RANKS)] = data_wait_seconds, device, self._host_memory()
        return numbers

    def of_step(self, of_ranks: Sequence[float], *, tokens: int, seconds: float, stalled: float) -> dict[str, Any]:
        """The numbers for the record of a step that read `tokens`. `stalled` is how long saves have held training up so far."""
        spent, before = phases.seconds_by_phase(), self._spent
        stall = stalled - self._stalled
        self._spent, self._stalled = spent, stalled
        rate = tokens / seconds
        tflops = rate / self._world_size * self._flops.causal / 1e12
        largest = {name: max(of_ranks[n :: len(OF_RANKS)]) for n, name in enumerate(OF_RANKS)}
        return {
            "seconds": seconds,
            "tokens_per_second": rate,
            "tokens_per_second_per_device": rate / self._world_size,
            "model_tflops_per_device": tflops,
            **(self._utilisation(tflops) if self._peak else {}),
            "phase_seconds": {phase.label: spent[phase] - before[phase] for phase in SHOWN_PHASES},
            "save_stall_seconds": stall,
            **{name: value for name, value in largest.items() if value or name != "device_memory_bytes"},
        }

    def _utilisation(self, tflops: float) -> dict[str, float]:
        mfu = tflops / (self._peak or 1.0)
        return {"mfu": mfu, "mfu_full_attention": mfu * self._flops.full / self._flops.causal}

    def _host_memory(self) -> float:
        """Bytes of this process in memory."""
        return float(self._statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
