"""Fewer points of a curve that look the same: of each stretch the least and the greatest, so that no spike is lost."""

import numpy as np
from numpy.typing import NDArray

from megatron_poro.report.series import Floats, Integers


def thin(values: Floats, most: int) -> Integers:
    """Which of `values` to draw, ascending and at most about `most`: first, last, and each stretch's least and greatest.

    Of a stretch without a finite value the first is kept, so a gap stays a gap.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    stretches = max(most // 2 - 1, 1)
    bounds = np.linspace(0, count, stretches + 1).astype(np.int64)
    width = int(np.max(np.diff(bounds)))
    places = np.minimum(bounds[:-1, None] + np.arange(width), bounds[1:, None] - 1)  # [stretches, width]
    picked = values[places]
    finite = np.isfinite(picked)
    least = np.argmin(np.where(finite, picked, np.inf), axis=1)
    greatest = np.argmax(np.where(finite, picked, -np.inf), axis=1)
    rows = np.arange(stretches)
    return np.unique(np.concatenate([[0, count - 1], places[rows, least], places[rows, greatest]]))


def smooth(values: Floats, window: int) -> Floats:
    """Mean of the last `window` finite values at each place; fewer at the start."""
    finite: NDArray[np.bool_] = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - window, 0)
    number = counts[ends] - counts[begins]
    return np.where(number > 0, (sums[ends] - sums[begins]) / np.maximum(number, 1), np.nan)
