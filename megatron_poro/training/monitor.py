"""Is this step's loss or gradient norm one to learn from? Decided from numbers that every rank sees alike, and nothing else.

A value is bad when it is not finite, or a spike: more than so many standard deviations above the mean of the good steps before it
(as OLMo-core's skip-step optimizer has it). The window is part of the checkpoint, so a resumed run decides as one that was never
interrupted.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from megatron_poro.config import FaultsConfig

LEAST_STEPS = 32
"""Good steps before spikes are looked for: a deviation of fewer says nothing."""
NAMES = ("loss", "gradient norm")


class StepMonitor:
    """Judges steps in turn. `bad_steps` counts the bad ones in a row up to now; the first read from sample `bad_from` on."""

    def __init__(self, faults: FaultsConfig) -> None:
        self._faults = faults
        self._window: deque[tuple[float, float]] = deque(maxlen=faults.spike_window)
        self.bad_steps = 0
        self.bad_from = 0

    def judge(self, loss: float, gradient_norm: float, *, position: int) -> str:
        """What is wrong with the step that began at sample `position`, empty when nothing is; it then joins the window."""
        values = (loss, gradient_norm)
        reason = _not_finite(values) or (self._spike(values) if self._faults.spike_deviations else "")
        if reason:
            self.bad_from = self.bad_from if self.bad_steps else position
            self.bad_steps += 1
        else:
            self.bad_steps = 0
            self._window.append(values)
        return reason

    def forget(self) -> None:
        """Start the window anew: the text changes, and with it what is usual."""
        self._window.clear()

    def as_dict(self) -> dict[str, Any]:
        """The monitor for JSON, which keeps every bit of its numbers."""
        return {"window": [list(values) for values in self._window], "bad_steps": self.bad_steps, "bad_from": self.bad_from}

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what `as_dict` gave, as far as the window reaches."""
        self._window.clear()
        self._window.extend((float(loss), float(norm)) for loss, norm in saved.get("window", []))
        self.bad_steps, self.bad_from = int(saved.get("bad_steps", 0)), int(saved.get("bad_from", 0))

    def _spike(self, values: Sequence[float]) -> str:
        if len(self._window) < min(LEAST_STEPS, self._faults.spike_window):
            return ""
        for name, value, usual in zip(NAMES, values, zip(*self._window, strict=True), strict=True):
            mean = math.fsum(usual) / len(usual)
            deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in usual) / (len(usual) - 1))
            if value - mean > self._faults.spike_deviations * deviation > 0:
                far = f"{(value - mean) / deviation:.1f} deviations above the mean"
                return f"{name} {value:.5g} is {far} {mean:.5g} of {len(usual)} steps"
        return ""


def _not_finite(values: Sequence[float]) -> str:
    return next((f"{name} is {value}" for name, value in zip(NAMES, values, strict=True) if not math.isfinite(value)), "")
