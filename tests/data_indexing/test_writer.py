import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_indexing.errors import DataError
from data_indexing.format import bin_path, idx_path, manifest_path
from data_indexing.reader import IndexedReader
from data_indexing.writer import IndexedWriter, check_output

sequences = st.lists(st.integers(0, 65_000), max_size=6)
documents = st.lists(st.lists(sequences, max_size=4), max_size=8)


def write_each(prefix, dtype, docs):
    with IndexedWriter(prefix, dtype) as writer:
        for doc in docs:
            writer.add_document(list(itertools.chain(*doc)), [len(sequence) for sequence in doc])
    return writer


def pair(prefix):
    return bin_path(prefix).read_bytes(), idx_path(prefix).read_bytes()


@settings(max_examples=60, deadline=None)
@given(docs=documents, dtype=st.sampled_from(["u2", "i4", "i8"]))
def test_what_is_written_is_read_back(tmp_path_factory, docs, dtype):
    prefix = tmp_path_factory.mktemp("pair") / "p"
    write_each(prefix, dtype, docs)
    with IndexedReader(prefix) as reader:
        assert [reader.document(i).tolist() for i in range(len(docs))] == [list(itertools.chain(*d)) for d in docs]
        assert reader.sequence_lengths.tolist() == [len(sequence) for doc in docs for sequence in doc]
        assert np.diff(reader.document_indices).tolist() == [len(doc) for doc in docs]
        assert (reader.dtype, reader.num_documents) == (np.dtype(dtype), len(docs))


@settings(max_examples=30, deadline=None)
@given(docs=documents)
def test_bytes_are_those_of_megatrons_builder(tmp_path_factory, docs):
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    folder = tmp_path_factory.mktemp("pair")
    builder = megatron.IndexedDatasetBuilder(str(folder / "theirs.bin"), dtype=np.int32)
    for doc in docs:
        builder.add_document(list(itertools.chain(*doc)), [len(sequence) for sequence in doc])
    builder.finalize(str(folder / "theirs.idx"))
    write_each(folder / "ours", np.int32, docs)
    assert pair(folder / "ours") == pair(folder / "theirs")


def test_megatron_reads_what_we_write(tmp_path):
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    docs = [[[1, 2, 3]], [[4], [5, 6]], [[7]]]
    write_each(tmp_path / "p", np.uint16, docs)
    dataset = megatron.IndexedDataset(str(tmp_path / "p"))
    assert [dataset[i].tolist() for i in range(len(dataset))] == [[1, 2, 3], [4], [5, 6], [7]]
    assert dataset.document_indices.tolist() == [0, 1, 3, 4]


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=20))
@settings(max_examples=20, deadline=None)
def test_documents_added_in_bulk_are_the_same_as_one_by_one(tmp_path_factory, lengths):
    folder = tmp_path_factory.mktemp("pair")
    tokens = np.arange(sum(lengths), dtype=np.int32)
    with IndexedWriter(folder / "bulk", np.int32) as writer:
        writer.add_documents(tokens, lengths)
    write_each(folder / "each", np.int32, [[part] for part in np.split(tokens, np.cumsum(lengths)[:-1])])
    assert pair(folder / "bulk") == pair(folder / "each")


def test_an_exception_leaves_nothing_new_and_the_old_pair_as_it_was(tmp_path):
    write_each(tmp_path / "p", np.int32, [[[1, 2]]])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt), IndexedWriter(tmp_path / "p", np.int32) as writer:
        writer.add_document([3])
        raise KeyboardInterrupt
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failing_rename_leaves_no_index_without_its_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"), IndexedWriter(tmp_path / "p", np.int32) as writer:
        writer.add_document([3])
    assert list(tmp_path.iterdir()) == []


def test_a_new_pair_removes_the_manifest_of_the_old_one(tmp_path):
    manifest_path(tmp_path / "p").write_text("{}")
    write_each(tmp_path / "p", np.int32, [[[1]]])
    assert not manifest_path(tmp_path / "p").exists()


@pytest.mark.parametrize(("tokens", "lengths"), [([1, 2], [1]), ([70_000], [1]), ([-1], [1])])
def test_wrong_lengths_and_ids_that_do_not_fit_are_refused(tmp_path, tokens, lengths):
    with pytest.raises(ValueError, match=r"tokens|ids"), IndexedWriter(tmp_path / "p", np.uint16) as writer:
        writer.add_documents(np.array(tokens), lengths)


def test_an_existing_output_is_refused_by_name(tmp_path):
    idx_path(tmp_path / "p").touch()
    with pytest.raises(DataError, match=r"p\.idx exists.*--overwrite"):
        check_output(tmp_path / "p", overwrite=False)
    check_output(tmp_path / "p", overwrite=True)


def test_an_output_that_cannot_be_written_is_an_error_of_the_user(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="choose another output"):
        check_output(tmp_path / "file" / "p", overwrite=False)
    with pytest.raises(DataError, match="choose another output"), IndexedWriter(tmp_path / "no" / "p", np.int32):
        pass
