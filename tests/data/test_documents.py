"""Documents counted and named by the .idx equal those whose tokens were seen in the samples."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_indexing.writer import IndexedWriter
from megatron_poro.config import DataConfig, SourceConfig, ValidationConfig
from megatron_poro.data import TrainingData, batches, count_documents, documents, documents_of, ledger_at

LENGTH = 8
Lengths = list[list[int]]
"""Tokens of each sequence of each document."""

documents_of_all_kinds = st.lists(
    st.lists(st.integers(0, 12), max_size=3), min_size=1, max_size=30
).filter(lambda lengths: sum(map(sum, lengths)) > 3 * LENGTH)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def small_windows() -> Iterator[None]:
    """Sources of a few sequences have thousands of epochs in a window of the usual size."""
    with mock.patch.object(batches, "_WINDOW_SAMPLES", 32):
        yield


def open_pairs(folder: Path, *pairs: Lengths, held_out: int = 1) -> TrainingData:
    """Sources whose tokens are the numbers of their documents; the last sequences of source 0 are held out."""
    for number, lengths in enumerate(pairs):
        write_pair(folder / str(number), lengths)
    return TrainingData(
        DataConfig(
            sequence_length=LENGTH,
            sources=tuple(SourceConfig(name=str(n), path=str(folder / str(n)), weight=1.0) for n in range(len(pairs))),
            validation=(ValidationConfig(name="v", source="0", last_sequences=held_out),),
        )
    )


def write_pair(prefix: Path, lengths: Lengths) -> None:
    with IndexedWriter(prefix, np.dtype(np.int32)) as writer:
        for number, parts in enumerate(lengths):
            writer.add_document(np.full(sum(parts), number), parts)


def seen_in(data: TrainingData, samples: range) -> list[set[int]]:
    rows, sources = data.samples(samples), data.sources_of(samples)
    return [set(rows[sources == n].ravel().tolist()) for n in range(len(data.sources))]


@settings(deadline=None, max_examples=40)
@given(one=documents_of_all_kinds, other=documents_of_all_kinds, num_samples=st.integers(0, 60), at_once=st.integers(1, 9))
def test_counted_documents_are_those_seen_in_the_samples(one: Lengths, other: Lengths, num_samples: int, at_once: int) -> None:
    with TemporaryDirectory() as folder:
        data = open_pairs(Path(folder), one, other)
        with mock.patch.object(documents, "_DOCUMENTS_AT_ONCE", at_once):
            counted = count_documents(data, num_samples)
        assert counted == [len(seen) for seen in seen_in(data, range(num_samples))]
        data.close()


@settings(deadline=None, max_examples=40)
@given(lengths=documents_of_all_kinds, first=st.integers(0, 50))
def test_the_documents_of_a_sample_are_those_of_its_tokens(lengths: Lengths, first: int) -> None:
    with TemporaryDirectory() as folder:
        data = open_pairs(Path(folder), lengths)
        for origin in documents_of(data, range(first, first + 5)):
            tokens = data.samples(range(origin.sample, origin.sample + 1))[0]
            assert set(tokens.tolist()) <= set(origin.documents)
            assert (origin.documents[0], origin.documents[-1]) == (tokens[0], tokens[-1])
            assert origin.epoch == origin.sample // data.sources[0].training.num_sequences
            assert tokens.tolist() == data.sources[0].training.reader.read(origin.sequence * LENGTH, LENGTH + 1).tolist()
        data.close()


def test_the_ledger_shows_documents_where_they_were_counted(tmp_path: Path) -> None:
    data = open_pairs(tmp_path, [[20]] * 10, [[4]] * 100)
    ledger = ledger_at(data.order, 98, count_documents(data, 98))
    assert [source["documents"] for source in ledger.as_dict()["sources"]] == [10, 99]  # the last is no sequence's
    assert ledger.as_table().splitlines()[0].endswith("documents")
    assert "documents" not in ledger_at(data.order, 40).as_dict()["sources"][0]
