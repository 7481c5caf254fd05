import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_indexing import shuffle as shuffle_module
from data_indexing.errors import DataError
from data_indexing.merge import merge
from data_indexing.shuffle import shuffle_keys
from tests.data_indexing.pairs_of_documents import contents, documents, read_pair, write_pair

MASK = 2**64 - 1


def mix(number):
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & MASK
    return number ^ (number >> 31)


def key(seed, document):
    return mix((mix(seed) + (document + 1) * 0x9E3779B97F4A7C15) & MASK)


@settings(max_examples=25, deadline=None)
@given(shards=st.lists(documents, min_size=1, max_size=4), seed=st.integers(0, MASK), memory=st.sampled_from([16, 600, 10**6]))
def test_documents_stand_in_the_order_of_their_keys(tmp_path_factory, shards, seed, memory):
    folder = tmp_path_factory.mktemp("shuffle")
    prefixes = [write_pair(folder / str(number), docs) for number, docs in enumerate(shards)]
    merge(prefixes, folder / "m", shuffle_seed=seed, shuffle_memory_bytes=memory)
    everything = [doc for docs in shards for doc in docs]
    order = sorted(range(len(everything)), key=lambda document: key(seed, document))
    assert read_pair(folder / "m") == [everything[document] for document in order]


def test_the_order_of_a_seed_never_changes():
    # Written down once: whoever has the inputs and the seed can make the same file for ever.
    assert np.argsort(shuffle_keys(1234, np.arange(12))).tolist() == [2, 6, 11, 5, 10, 4, 9, 0, 8, 1, 3, 7]
    assert int(shuffle_keys(0, np.arange(1))[0]) == mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_memory_and_write_sizes_do_not_matter(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    docs = [[rng.integers(0, 999, rng.integers(0, 40)).tolist()] for _ in range(500)]
    prefixes = [write_pair(tmp_path / "a", docs[:200]), write_pair(tmp_path / "b", docs[200:])]
    results = []
    for number, (memory, write) in enumerate([(300, 64), (5_000, 1_000), (40_000, 10), (10**9, 1 << 20)]):
        monkeypatch.setattr(shuffle_module, "_WRITE_BYTES", write)
        merge(prefixes, tmp_path / f"{number}" / "m", shuffle_seed=7, shuffle_memory_bytes=memory)
        results.append(contents(tmp_path / f"{number}"))
    assert all(result == results[0] for result in results)
    assert sorted(results[0]) == ["m.bin", "m.idx", "m.json"]


def test_every_place_is_as_likely_as_every_other():
    # 5 documents, 120 orders, 12,000 seeds: chi-square with 119 degrees of freedom stays below 181 but once in 5,000.
    seeds = 12_000
    orders = [tuple(np.argsort(shuffle_keys(seed, np.arange(5)))) for seed in range(seeds)]
    counts = np.unique(np.array(orders), axis=0, return_counts=True)[1]
    assert counts.size == 120
    assert ((counts - seeds / 120) ** 2 / (seeds / 120)).sum() < 181


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_has_64_bits(tmp_path, seed):
    write_pair(tmp_path / "a", [[[1]]])
    with pytest.raises(DataError, match=r"must be within 0 \.\. 2\^64 - 1"):
        merge([tmp_path / "a"], tmp_path / "m", shuffle_seed=seed)
    assert sorted(contents(tmp_path)) == ["a.bin", "a.idx"]
