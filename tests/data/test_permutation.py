"""The shuffle is a bijection, has fixed values on every machine, and looks random."""

from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_poro.data.permutation import Permutation, build_permutation

POSITIONS = np.arange(100_003)


def build(size: int, *_: object, seed: int = 1, fingerprint: str = "abc", epoch: int = 0) -> Permutation:
    return build_permutation(size, seed=seed, fingerprint=fingerprint, epoch=epoch)


@settings(deadline=None)
@given(size=st.integers(1, 5000), seed=st.integers(0, 2**70), epoch=st.integers(0, 100))
def test_every_index_is_hit_exactly_once(size: int, seed: int, epoch: int) -> None:
    result = build(size, seed=seed, epoch=epoch).take(np.arange(size))
    assert np.array_equal(np.sort(result), np.arange(size))


@given(size=st.integers(1, 2**62), data=st.data())
def test_a_single_index_and_an_array_of_any_size_agree(size: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), max_size=5))
    permutation = build(size)
    result = permutation.take(np.array(indices, np.int64)).tolist()
    assert result == [permutation.at(index) for index in indices]
    assert all(0 <= value < size for value in result)


def test_values_are_the_same_on_every_machine() -> None:
    assert build(10).take(np.arange(10)).tolist() == [3, 8, 6, 0, 9, 4, 1, 7, 5, 2]
    assert build(150_000_000).take(np.arange(4)).tolist() == [132046210, 18909923, 99431003, 47510993]


@pytest.mark.parametrize("change", [{"seed": 2}, {"fingerprint": "abx"}, {"epoch": 1}])
def test_another_seed_content_or_epoch_gives_an_unrelated_order(change: dict[str, Any]) -> None:
    one, other = build(100_003).take(POSITIONS), build(100_003, **change).take(POSITIONS)
    assert (one == other).sum() < 10  # a random pair agrees in 1 place on average; 10 has probability 1e-7
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.02  # 6 standard deviations


def test_neighbours_land_independently_of_each_other_and_of_their_position() -> None:
    result = build(100_003).take(POSITIONS)
    assert abs(np.corrcoef(POSITIONS, result)[0, 1]) < 0.02  # 6 standard deviations of 1 / sqrt(100,003)
    assert abs(np.corrcoef(result[1:], result[:-1])[0, 1]) < 0.02
    assert (np.diff(result) == 1).sum() < 10


def test_pairs_of_position_and_value_fill_a_grid_evenly() -> None:
    result = build(100_003).take(POSITIONS)
    cells = np.histogram2d(POSITIONS, result, bins=32)[0]
    chi_square = ((cells - cells.mean()) ** 2 / cells.mean()).sum()
    assert 770 < chi_square < 1160  # 31 x 31 degrees of freedom: 961 with standard deviation 44


@pytest.mark.parametrize(("size", "limit"), [(2, 16), (3, 25), (4, 55), (5, 190)])
def test_all_orders_of_a_small_set_are_equally_likely_over_keys(size: int, limit: int) -> None:
    """`limit` is beyond the 0.9999 quantile of chi-square with size! - 1 degrees of freedom."""
    drawn = Counter(tuple(build(size, seed=seed).take(np.arange(size)).tolist()) for seed in range(4000))
    orders = list(permutations(range(size)))
    expected = 4000 / len(orders)
    assert sum((drawn[order] - expected) ** 2 / expected for order in orders) < limit


@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_outside_is_refused(index: int) -> None:
    with pytest.raises(IndexError):
        build(10).at(index)


def test_nothing_cannot_be_permuted() -> None:
    with pytest.raises(ValueError):
        build(0)
