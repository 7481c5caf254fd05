"""Fewer points of a curve that look the same: of each stretch the least and the greatest, so that no spike is lost."""

import numpy as np

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
    """Mean of the `window` values around each place, of those that are finite; fewer at both ends."""
    after = window // 2
    values = np.concatenate([values, np.full(after, np.nan)])
    finite = np.isfinite(values)
    numbers = _sums(finite.astype(np.float64), window)
    sums = _sums(np.where(finite, values, 0.0), window)
    means: Floats = np.where(numbers > 0, sums / np.maximum(numbers, 1), np.nan)
    return means[after:]


def _sums(values: Floats, window: int) -> Floats:
    """Sums of the last `window` values, put together from sums of 1, 2, 4, ...: nothing is subtracted.

    Differences of running totals would lose everything behind a spike of 1e20.
    """
    total, taken = np.zeros_like(values), 0
    block, size = values, 1
    while size <= window:
        if window & size:
            total = total + _later(block, taken)
            taken += size
        block, size = block + _later(block, size), 2 * size
    return total


def _later(values: Floats, places: int) -> Floats:
    return np.concatenate([np.zeros(min(places, len(values))), values[: max(len(values) - places, 0)]])
