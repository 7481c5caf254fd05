"""Flat ranges are cut into boxes that hold exactly their numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_poro.conversion.arrays import boxes_of_range

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(SHAPES, st.data())
def test_the_boxes_of_a_range_hold_its_numbers_in_order(shape: list[int], data: st.DataObject) -> None:
    numbers = np.arange(np.prod(shape)).reshape(shape)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, numbers.size)] * 2)))
    boxes = list(boxes_of_range(start, stop, shape))
    found = [numbers[tuple(slice(o, o + n) for o, n in zip(*box, strict=True))].ravel() for box in boxes]
    assert np.concatenate([np.empty(0, int), *found]).tolist() == list(range(start, stop))
    assert len(boxes) <= 2 * len(shape) - 1


@pytest.mark.parametrize(("start", "stop"), [(0, 24), (8, 16), (5, 5)])
def test_whole_rows_are_one_box(start: int, stop: int) -> None:
    assert len(list(boxes_of_range(start, stop, (6, 4)))) == (start < stop)
