"""The closed form equals a merge by deadlines, keeps every source near its share, and never loses count."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_poro.data.blend import build_blend

weights_of_all_kinds = st.one_of(st.integers(0, 50), st.floats(0, 1), st.floats(0, 1e-12))
weight_lists = st.lists(weights_of_all_kinds, min_size=1, max_size=12).filter(any)


def merge_by_hand(weights: Sequence[float], count: int) -> list[int]:
    """The sources of the first `count` samples: Huffman's tree, each node a merge of its children by deadline."""
    trees = [(Fraction(str(weight)), n, [n] * count) for n, weight in enumerate(weights) if weight]
    for label in range(len(weights), 2 * len(weights)):
        if len(trees) == 1:
            break
        light, heavy, *rest = sorted(trees, key=lambda tree: tree[:2])
        total = light[0] + heavy[0]
        due = [
            (Fraction(2 * i + 1, 2) / tree[0], place, source)
            for place, tree in enumerate((heavy, light))
            for i, source in enumerate(tree[2])
        ]
        trees = [*rest, (total, label, [source for _, _, source in sorted(due)][:count])]
    return trees[0][2]


@settings(deadline=None)
@given(weights=weight_lists, count=st.integers(0, 60))
def test_the_closed_form_equals_a_merge_by_deadlines(weights: Sequence[float], count: int) -> None:
    assert build_blend(weights).picks(0, count)[0].tolist() == merge_by_hand(weights, count)


@settings(deadline=None)
@given(weights=weight_lists, first=st.integers(0, 10**12), count=st.integers(0, 50))
def test_picks_continue_the_counts_before_without_gaps(weights: Sequence[float], first: int, count: int) -> None:
    blend = build_blend(weights)
    counts = blend.counts_at(first)
    assert sum(counts) == first
    for source, number in zip(*(column.tolist() for column in blend.picks(first, count)), strict=True):
        assert number == counts[source]
        counts[source] += 1
    assert counts == blend.counts_at(first + count)


@settings(deadline=None)
@given(weights=weight_lists, first=st.integers(0, 10**9), span=st.integers(0, 300))
def test_every_source_stays_within_two_samples_of_its_share(weights: Sequence[float], first: int, span: int) -> None:
    blend = build_blend(weights)
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    bound = Fraction(1, 2) if sum(map(bool, weights)) <= 2 else 2
    for n in range(first, first + span, 7):
        off = [abs(count - n * share) for count, share in zip(blend.counts_at(n), shares, strict=True)]
        assert max(off) <= bound
        assert all(count == 0 for count, share in zip(blend.counts_at(n), shares, strict=True) if not share)


@pytest.mark.parametrize(
    "weights", [[9.0] + [1 / 199] * 199, [1.0] * 200, [0.5**n for n in range(200)], [float(n) for n in range(1, 201)]]
)
def test_two_hundred_sources_stay_within_two_samples_at_every_sample(weights: Sequence[float]) -> None:
    picks = build_blend(weights).picks(0, 20_000)[0]
    shares = np.array(weights) / sum(weights)
    counts = np.zeros(200)
    for n, source in enumerate(picks.tolist(), start=1):
        counts[source] += 1
        assert np.abs(counts - n * shares).max() < 2


@given(weights=st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), factor=st.integers(1, 1000))
def test_only_the_ratio_of_the_weights_matters(weights: Sequence[float], factor: int) -> None:
    scaled = [weight * factor for weight in weights]
    assert build_blend(scaled).picks(0, 40)[0].tolist() == build_blend(weights).picks(0, 40)[0].tolist()


def test_weights_are_the_decimals_they_are_written_as() -> None:
    assert build_blend([0.1, 0.2, 0.7]) == build_blend([1, 2, 7])


def test_weights_of_many_digits_give_exact_counts_far_out() -> None:
    weights = [1 / 3, 1e-9, 0.30000000000000004]
    blend = build_blend(weights)
    sources, numbers = blend.picks(10**15, 100)
    assert numbers.dtype == np.int64
    assert max(numbers[sources == 0]) == blend.counts_at(10**15 + 100)[0] - 1


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -0.5]])
def test_weights_that_give_no_mix_are_refused(weights: Sequence[float]) -> None:
    with pytest.raises(ValueError):
        build_blend(weights)
