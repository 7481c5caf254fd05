"""The learning rate as a pure function of the step, so a resume cannot restart it."""

import math

from megatron_poro.config import OptimizerConfig


def learning_rate(step: int, num_steps: int, optimizer: OptimizerConfig) -> float:
    """The rate used in step `step` (counted from 0) of `num_steps`.

    It rises linearly from peak / warm-up steps to the peak, then follows the schedule to the final rate, which the last step uses.
    """
    peak, final = optimizer.learning_rate, optimizer.final_learning_rate
    warmup = round(optimizer.warmup_fraction * num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step + 1 - warmup) / max(num_steps - warmup, 1)
    if optimizer.schedule == "constant":
        return peak
    if optimizer.schedule == "linear":
        return peak + (final - peak) * progress
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))
