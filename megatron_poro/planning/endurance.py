"""From seconds of a step to the whole run: failures, checkpoints, days, disk, GPU-hours, cost."""

import math
from dataclasses import dataclass

BYTES_PER_PARAMETER = 14
"""Of a checkpoint: bf16 weight 2, fp32 master weight 4, two moments 8; published checkpoints have 14.0 to 14.4 a parameter."""
STALL_SECONDS = 10.0
"""What an asynchronous save holds the training up, for the copy to the host (PyTorch's DCP, 7 to 13B: 6 to 14 s)."""
DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class Endurance:
    """How a run lives through failures. Seconds; `overhead` is their share of the time without them."""

    mtbf_seconds: float
    save_seconds: float
    stall_seconds: float
    best_interval_seconds: float
    interval_seconds: float
    overhead: float


def mtbf_seconds(nodes: int, per_1000_node_days: float) -> float:
    """Mean time between failures of a job on so many nodes; infinite at a rate of 0."""
    return math.inf if not per_1000_node_days else 1000 * DAY / (per_1000_node_days * nodes)


def best_interval_seconds(stall_seconds: float, mtbf: float) -> float:
    """Between the starts of two saves: sqrt(2 C M). Sources: Young 1974, Daly 2006 (first order)."""
    return math.sqrt(2 * stall_seconds * mtbf)


def failure_overhead(stall_seconds: float, interval: float, mtbf: float, *, restart_seconds: float) -> float:
    """Share lost: the stall of each save; at each failure half an interval and the restart (Daly 2006, first order)."""
    stall = stall_seconds / interval if math.isfinite(interval) else 0.0
    return stall + ((interval / 2 + restart_seconds) / mtbf if math.isfinite(mtbf) else 0.0)


def endure(
    nodes: int, checkpoint_bytes: float, *, failures: float, write_rate: float, restart_seconds: float, interval: float
) -> Endurance:
    """The run's life at `failures` of 1,000 nodes in a day; `interval` 0 takes Young's and Daly's. Rates in bytes/s."""
    mtbf = mtbf_seconds(nodes, failures)
    best = best_interval_seconds(STALL_SECONDS, mtbf)
    save = checkpoint_bytes / write_rate
    used = max(interval or best, save)  # the next save cannot start while one is written
    overhead = failure_overhead(STALL_SECONDS, used, mtbf, restart_seconds=restart_seconds)
    return Endurance(
        mtbf_seconds=mtbf,
        save_seconds=save,
        stall_seconds=STALL_SECONDS,
        best_interval_seconds=best,
        interval_seconds=used,
        overhead=overhead,
    )


def checkpoints_kept(num_steps: int, *, every: int, keep_last: int, keep_every: int) -> int:
    """Checkpoints on the disk at most, with the one that is being written; the retention policy of a run file."""
    if not every:
        return 2
    saves = -(-num_steps // every)
    milestones = num_steps // keep_every if keep_every else 0
    return min(saves, keep_last + milestones if keep_last else saves) + 1


def days_at_rate(tokens: float, flops_per_token: float, *, tflops: float, devices: int, efficiency: float = 1.0) -> float:
    """Days for `tokens` at a plateau of TFLOP/s a device, of which a pipeline leaves `efficiency` = m / (m + (p - 1) / v)."""
    return tokens * flops_per_token / (tflops * 1e12 * efficiency * devices) / DAY


def elements(days: float, max_minutes: int, *, start_minutes: float, spare: int) -> int:
    """Elements of a job array: each starts once and ends at the time limit; 0 where there is no limit."""
    return math.ceil(days * 1440 / max(max_minutes - start_minutes, 1)) + spare if max_minutes else 0
