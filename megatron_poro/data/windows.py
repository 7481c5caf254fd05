"""Windows of sample numbers that a run leaves out: how a rollback goes around a batch that it cannot learn from.

Sample n stays what it is; a run with windows reads the samples that lie in none of them, in order. So its position in the data is
still one integer.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_poro.errors import CheckpointError

LEFT_OUT = "left_out.json"
"""The file of a run directory that tells its windows."""

Span = tuple[int, int]
"""The first sample number and the one after the last."""


@dataclass(frozen=True)
class Windows:
    """Spans of sample numbers that are left out: sorted, apart from each other, none empty."""

    spans: tuple[Span, ...] = ()

    def with_span(self, first: int, stop: int) -> "Windows":
        """These windows and the samples `first` to `stop - 1`."""
        merged: list[Span] = []
        for start, end in sorted([*self.spans, (first, stop)]):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            elif start < end:
                merged.append((start, end))
        return Windows(tuple(merged))

    def take(self, position: int, count: int) -> list[range]:
        """The next `count` samples from sample number `position` on, as runs of consecutive numbers."""
        runs = []
        for first, stop in (*self.spans, (sys.maxsize, sys.maxsize)):
            if count and stop > position:
                end = max(position, min(first, position + count))
                runs.append(range(position, end))
                count -= end - position
                position = stop
        return [run for run in runs if run]

    def num_before(self, position: int) -> int:
        """How many samples before `position` are left out."""
        return sum(max(min(stop, position) - first, 0) for first, stop in self.spans)

    def position_after(self, num_samples: int) -> int:
        """The sample number at which a run stands that has read `num_samples` samples."""
        runs = self.take(0, num_samples)
        return runs[-1].stop if runs else 0

    def as_list(self) -> list[list[int]]:
        """For JSON."""
        return [list(span) for span in self.spans]


def to_windows(spans: Iterable[Sequence[int]]) -> Windows:
    """The windows that `as_list` gave."""
    windows = Windows()
    for first, stop in spans:
        windows = windows.with_span(int(first), int(stop))
    return windows


def read_windows(path: Path) -> Windows:
    """The windows in a run's file; none where there is no file. Raises CheckpointError when it is damaged."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return to_windows(content["left_out"])
    except FileNotFoundError:
        return Windows()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); restore it: it says which samples the run leaves out") from None
