import os
import struct
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer

from data_indexing.errors import DataError
from data_indexing.format import HEADER_BYTES, bin_path, idx_path
from data_indexing.reader import IndexedReader
from data_indexing.writer import IndexedWriter
from tests.shared_data import shared

LENGTHS = [3, 0, 5, 1, 4]
TOKENS = np.arange(13, dtype=np.int32)


@pytest.fixture
def prefix(tmp_path):
    with IndexedWriter(tmp_path / "p", np.int32) as writer:
        writer.add_documents(TOKENS, LENGTHS)
    return tmp_path / "p"


def patch(path, offset, raw):
    content = bytearray(path.read_bytes())
    content[offset : offset + len(raw)] = raw
    path.write_bytes(content)


@settings(max_examples=50, deadline=None)
@given(start=st.integers(0, 13), count=st.integers(0, 13))
def test_any_run_of_tokens_is_a_slice_of_all_of_them(tmp_path_factory, start, count):
    prefix = tmp_path_factory.mktemp("pair") / "p"
    with IndexedWriter(prefix, np.int32) as writer:
        writer.add_documents(TOKENS, LENGTHS)
    with IndexedReader(prefix) as reader:
        if start + count > reader.num_tokens:
            with pytest.raises(ValueError, match="no tokens"):
                reader.read(start, count)
        else:
            assert reader.read(start, count).tolist() == TOKENS[start : start + count].tolist()


def test_a_read_is_one_system_call(prefix):
    with IndexedReader(prefix) as reader, mock.patch("os.pread", wraps=os.pread) as pread:
        reader.read(1, 11)
    assert [call.args[1:] for call in pread.call_args_list] == [(44, 4)]


@pytest.mark.parametrize("max_tokens", [1, 3, 4, 5, 8, 100])
def test_batches_cover_all_documents_within_the_limit(prefix, max_tokens):
    with IndexedReader(prefix) as reader:
        batches = list(reader.document_batches(max_tokens))
        assert [document for first, end in batches for document in range(first, end)] == list(range(5))
        assert all(end - first == 1 or reader.documents(first, end).size <= max_tokens for first, end in batches)


def test_a_pair_without_documents_can_be_read(tmp_path):
    with IndexedWriter(tmp_path / "p", np.int32):
        pass
    with IndexedReader(tmp_path / "p") as reader:
        assert (reader.num_documents, reader.num_tokens) == (0, 0)
        assert list(reader.document_batches(10)) == []


def test_a_pair_of_another_teams_megatron_is_read():
    folder = shared("megatron_foreign")
    with IndexedReader(folder / "meg-gpt2-openwebtext_text_document") as reader:
        assert reader.dtype == np.uint16
        assert (reader.num_sequences, reader.document_indices.size) == (1_000, 1_001)
        assert reader.num_tokens == 1_361_845
        assert reader.read(0, reader.num_tokens).max() == 4_999
        assert {int(reader.document(i)[-1]) for i in range(reader.num_documents)} == {4_999}
        ids = reader.document(0).tolist()
    vocabulary = (str(folder / "gpt2-tiny-vocab.json"), str(folder / "gpt2-tiny-merges.txt"))
    text = ByteLevelBPETokenizer(*vocabulary).decode(ids[:-1])
    assert all(f" {word} " in text for word in ("the", "and", "of", "to"))


def test_megatron_and_we_read_the_same_from_the_foreign_pair():
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    prefix = shared("megatron_foreign") / "meg-gpt2-openwebtext_text_document"
    theirs = megatron.IndexedDataset(str(prefix))
    with IndexedReader(prefix) as ours:
        for index in (0, 17, 999):
            assert np.array_equal(ours.document(index), theirs[index])


@pytest.mark.parametrize("cut", [*range(0, 60, 7), 100, 133])
def test_a_truncated_index_is_named(prefix, cut):
    path = idx_path(prefix)
    assert path.stat().st_size == HEADER_BYTES + 12 * 5 + 8 * 6 == 142
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=rf"p\.idx: .*(142|34).* found {cut}; .*again"):
        IndexedReader(prefix)


@pytest.mark.parametrize("cut", [0, 1, 48, 51])
def test_a_truncated_bin_is_named(prefix, cut):
    path = bin_path(prefix)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=rf"p\.bin: the \.idx describes 52 bytes, found {cut}; .*again"):
        IndexedReader(prefix)


@pytest.mark.parametrize(
    ("offset", "raw", "message"),
    [
        (0, b"TNTIDX", "starts with b'TNTIDX"),
        (9, struct.pack("<Q", 2), "format version 2, expected 1"),
        (17, b"\x09", "dtype code 9, expected one of"),
        (17, b"\x08", "describes 44 bytes, found 52"),
        (18, struct.pack("<Q", 2**62), r"need \d+ bytes, found 142"),
        (26, struct.pack("<Q", 2**62), r"need \d+ bytes, found 142"),
    ],
)
def test_a_damaged_header_is_named_and_nothing_is_allocated_for_it(prefix, offset, raw, message):
    patch(idx_path(prefix), offset, raw)
    with pytest.raises(DataError, match=message):
        IndexedReader(prefix)


@pytest.mark.parametrize("pointer", [2**40, -4])
def test_a_pointer_out_of_the_bin_is_named_when_its_document_is_read(prefix, pointer):
    patch(idx_path(prefix), HEADER_BYTES + 4 * 5 + 8 * 2, struct.pack("<q", pointer))
    with IndexedReader(prefix) as reader, pytest.raises(DataError, match=r"p\.idx: documents 2 \.\. 3 point to bytes"):
        reader.document(2)


def test_a_document_index_out_of_range_is_named(prefix):
    patch(idx_path(prefix), HEADER_BYTES + 12 * 5 + 8, struct.pack("<q", 99))
    with IndexedReader(prefix) as reader, pytest.raises(DataError, match=r"sequences outside 0 \.\. 5"):
        reader.document(0)


def test_a_bin_that_shrinks_while_it_is_open_is_an_error(prefix):
    with IndexedReader(prefix) as reader:
        os.truncate(bin_path(prefix), 8)
        with pytest.raises(DataError, match="read 8 bytes, expected 52"):
            reader.read(0, 13)


def test_what_is_too_long_for_one_system_call_is_read_in_several(prefix, monkeypatch):
    pread, preadv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda file, size, offset: pread(file, min(size, 8), offset))
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: preadv(file, [buffers[0][:8]], offset))
    with IndexedReader(prefix) as reader:
        assert reader.read(1, 11).tolist() == list(range(1, 12))


def test_sequence_modes_are_refused(prefix):
    with idx_path(prefix).open("ab") as stream:
        stream.write(bytes(5))
    with pytest.raises(DataError, match="multimodal"):
        IndexedReader(prefix)


@pytest.mark.parametrize(("path", "way"), [(idx_path, r"without \.bin or \.idx"), (bin_path, r"belongs to the \.idx beside it")])
def test_a_missing_file_is_named(prefix, path, way):
    path(prefix).unlink()
    with pytest.raises(DataError, match=rf"{path(prefix).name}: No such file.*{way}"):
        IndexedReader(prefix)


def test_a_document_that_is_not_there_is_an_index_error(prefix):
    with IndexedReader(prefix) as reader, pytest.raises(IndexError, match="no document 5"):
        reader.document(5)
