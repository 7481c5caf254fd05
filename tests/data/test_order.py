"""The order is a pure function of the data section and the sample number."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_poro.config import DataConfig, SourceConfig, StageConfig
from megatron_poro.data.order import SampleOrder, build_order
from megatron_poro.errors import ConfigError

LENGTH = 4
NAMES = ("finnish", "english", "code")
Stages = Sequence[tuple[int, dict[str, float]]]
"""First sample and mix of each stage."""


def describe(weights: Sequence[float] = (0.6, 0.3, 0.1), stages: Stages = (), seed: int = 1) -> DataConfig:
    """A data section; `stages` are (first sample, weights)."""
    return DataConfig(
        sequence_length=LENGTH,
        seed=seed,
        sources=tuple(SourceConfig(name=n, path=n, weight=w) for n, w in zip(NAMES, weights, strict=True)),
        stages=tuple(StageConfig(from_tokens=first * LENGTH, weights=mix) for first, mix in stages),
    )


def order_of(config: DataConfig, sizes: tuple[int, int, int] = (50, 70, 3)) -> SampleOrder:
    return build_order(config, sizes, [f"content of {name}" for name in NAMES])


def triples(order: SampleOrder, first: int, count: int) -> list[tuple[int, int, int]]:
    where = order.locate(first, count)
    return list(zip(where.sources.tolist(), where.epochs.tolist(), where.sequences.tolist(), strict=True))


stage_lists = st.lists(
    st.tuples(
        st.integers(1, 150),
        st.dictionaries(st.sampled_from(NAMES), st.integers(0, 9)).filter(lambda m: any(m.values())),
    ),
    max_size=3,
    unique_by=lambda stage: stage[0],
).map(lambda stages: sorted(stages, key=lambda stage: stage[0]))


@settings(deadline=None)
@given(stages=stage_lists, sizes=st.tuples(*[st.integers(1, 40)] * 3), seed=st.integers(0, 5))
def test_an_epoch_shows_every_sequence_exactly_once(stages: Stages, sizes: tuple[int, int, int], seed: int) -> None:
    order = order_of(describe(stages=stages, seed=seed), sizes)
    seen = Counter(triples(order, 0, 300))
    assert set(seen.values()) == {1}
    for source, count in enumerate(order.counts_at(300)):
        for epoch in range(count // sizes[source]):
            assert {(source, epoch, sequence) for sequence in range(sizes[source])} <= seen.keys()
    assert all(sequence < sizes[source] for source, _, sequence in seen)


@settings(deadline=None)
@given(stages=stage_lists, cuts=st.lists(st.integers(0, 300)))
def test_a_sample_does_not_depend_on_what_is_asked_with_it_or_before(stages: Stages, cuts: list[int]) -> None:
    order = order_of(describe(stages=stages))
    bounds = [0, *sorted(cuts), 300]
    asked_backwards = [triples(order, start, end - start) for start, end in reversed(list(pairwise(bounds)))]
    assert [where for piece in reversed(asked_backwards) for where in piece] == triples(order, 0, 300)


@settings(deadline=None)
@given(stages=stage_lists, start=st.integers(151, 250), mix=st.sampled_from([{"code": 1.0}, {"english": 2, "code": 1}]))
def test_a_stage_changes_nothing_before_it_and_continues_every_source(stages: Stages, start: int, mix: dict[str, float]) -> None:
    without, with_stage = order_of(describe(stages=stages)), order_of(describe(stages=[*stages, (start, mix)]))
    assert triples(with_stage, 0, start) == triples(without, 0, start)
    assert with_stage.counts_at(start) == without.counts_at(start)
    later = Counter(source for source, _, _ in triples(with_stage, start, 60))
    assert {NAMES[source] for source in later} == set(mix)
    assert abs(later[2] - 60 * mix["code"] / sum(mix.values())) < 2


@settings(deadline=None)
@given(stages=stage_lists, num_samples=st.integers(0, 300))
def test_every_source_stays_within_two_samples_a_mix_of_the_sum_of_its_shares(stages: Stages, num_samples: int) -> None:
    mixes: list[tuple[int, dict[str, float]]] = [(0, {"finnish": 0.6, "english": 0.3, "code": 0.1}), *stages]
    mixes = [mix for mix in mixes if mix[0] <= num_samples]
    ends = [first for first, _ in mixes[1:]] + [num_samples]
    due = {
        name: sum((end - first) * mix.get(name, 0) / sum(mix.values()) for (first, mix), end in zip(mixes, ends, strict=True))
        for name in NAMES
    }
    counts = order_of(describe(stages=stages)).counts_at(num_samples)
    assert all(abs(count - due[name]) < 2 * len(mixes) for name, count in zip(NAMES, counts, strict=True))


@settings(deadline=None)
@given(stages=stage_lists, num_samples=st.integers(0, 300))
def test_counts_equal_a_count_of_the_samples(stages: Stages, num_samples: int) -> None:
    order = order_of(describe(stages=stages))
    counted = Counter(source for source, _, _ in triples(order, 0, num_samples))
    assert order.counts_at(num_samples) == [counted[source] for source in range(3)]


def test_a_source_held_back_at_first_enters_with_its_stage() -> None:
    order = order_of(describe(weights=(1, 1, 0), stages=[(40, {"code": 1})]))
    assert order.counts_at(40) == [20, 20, 0]
    assert order.counts_at(45) == [20, 20, 5]


def test_another_seed_gives_other_sequences_in_the_same_mix() -> None:
    one, other = (order_of(describe(seed=seed), (500, 700, 300)).locate(0, 400) for seed in (1, 2))
    assert np.array_equal(one.sources, other.sources)
    assert (one.sequences == other.sequences).sum() < 12  # about 1 in 500 agrees by chance


def test_epochs_of_a_source_are_shuffled_differently() -> None:
    order = order_of(describe(weights=(1, 0, 0)), (500, 1, 1))
    assert (order.locate(0, 500).sequences == order.locate(500, 500).sequences).sum() < 12


def test_a_run_of_the_size_of_poro_2_is_located_anywhere_without_preparation() -> None:
    order = build_order(describe(weights=(0.4, 0.4, 0.2)), (9_100_000, 150_000_000, 3_000_000), "abc")
    where = order.locate(20_000_000, 64)
    assert set(where.epochs[where.sources == 2].tolist()) == {1}
    assert where.sequences.max() < 150_000_000
    assert sum(order.counts_at(20_200_000)) == 20_200_000


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, -1)])
def test_samples_that_cannot_exist_are_refused(first: int, count: int) -> None:
    with pytest.raises(ValueError):
        order_of(describe()).locate(first, count)


def test_no_samples_are_an_empty_answer() -> None:
    assert triples(order_of(describe()), 7, 0) == []


def stage(from_tokens: int, **weights: float) -> StageConfig:
    return StageConfig(from_tokens=from_tokens, weights=weights)


def source(name: str, weight: float) -> SourceConfig:
    return SourceConfig(name=name, path=name, weight=weight)


BAD_SECTIONS: dict[str, dict[str, Any]] = {
    "data.stages[0].from_tokens: 6 is no multiple of data.sequence_length (4); take 8": {"stages": (stage(6, code=1.0),)},
    "data.stages[1].from_tokens: 8 is not above 8": {"stages": (stage(8, code=1.0),) * 2},
    "data.stages[0].from_tokens: 0 is not above 0": {"stages": (stage(0, code=1.0),)},
    "data.stages[0].weights: 'cod' is no source; known: finnish, english, code": {"stages": (stage(8, cod=1.0, code=1.0),)},
    "data.stages[0]: every weight is 0": {"stages": (stage(8, code=0.0),)},
    "data.stages[0].weights.code: -1.0 is out of range": {"stages": (stage(8, code=-1.0),)},
    "data.sources: every weight is 0": {"sources": tuple(source(n, 0.0) for n in NAMES)},
    "data.sources[0].weight: nan is out of range": {"sources": (source("a", float("nan")),)},
    "data.sources[0].weight: inf is out of range": {"sources": (source("a", float("inf")),)},
    "data.sources[].name: 'a' stands 2 times": {"sources": (source("a", 1.0),) * 2},
    "data.sources[].path: 'a' stands 2 times": {"sources": (source("a", 1.0),) * 2},
    "data.sources: empty": {"sources": ()},
    "data.sequence_length: 0 is out of range": {"sequence_length": 0},
}


@pytest.mark.parametrize("message", BAD_SECTIONS)
def test_a_contradiction_is_refused_with_its_key_and_the_way_out(message: str) -> None:
    with pytest.raises(ConfigError) as error:
        order_of(replace(describe(), **BAD_SECTIONS[message]))
    assert [problem for problem in error.value.problems if message in problem]
