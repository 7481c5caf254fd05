"""Where a run stands, as it goes into state.json and comes back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainState:
    """Steps taken; the sample number that comes next; tokens read; updates made, which steps that were left out are not."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    updates: int = 0

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> "TrainState":
        """From a state.json; where it does not count updates, every step was one."""
        return cls(saved["step"], saved["samples"], saved["tokens"], saved.get("updates", saved["step"]))
