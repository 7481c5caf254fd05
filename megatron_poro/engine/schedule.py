"""The learning rate as a pure function of the step and the run file, so a resume cannot restart it."""

import math

from megatron_poro.config import OptimizerConfig
from megatron_poro.config.duration import Duration, decay_units, warmup_units


def learning_rate(step: int, duration: Duration, optimizer: OptimizerConfig) -> float:
    """The rate used in step `step` (counted from 0) of the run.

    Its axis is planned tokens: with batches of different sizes a step moves it by its share of them. The rate rises linearly to
    the peak, then follows the schedule to the final rate, which the last step uses.
    """
    peak, final = optimizer.learning_rate, optimizer.final_learning_rate
    warmup, done = warmup_units(duration, optimizer), duration.units_before(step + 1)
    if done <= warmup:
        return peak * done / warmup
    if optimizer.schedule == "constant":
        return peak
    if optimizer.schedule == "wsd":
        decay = decay_units(duration, optimizer)
        start = duration.num_units - decay
        return peak if done <= start else _decayed(peak, final, (done - start) / decay, optimizer.decay_shape)
    return _decayed(peak, final, (done - warmup) / max(duration.num_units - warmup, 1), optimizer.schedule)


def _decayed(peak: float, final: float, progress: float, shape: str) -> float:
    """The rate after `progress` (0 to 1) of a decay from the peak to the final rate.

    `sqrt` is 1 - sqrt(progress), which Hägele et al. 2024 (arXiv:2405.18392) found best for wsd.
    """
    if shape == "linear":
        return peak + (final - peak) * progress
    if shape == "sqrt":
        return final + (peak - final) * (1 - math.sqrt(progress))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))
