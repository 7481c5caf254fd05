import dataclasses
import hashlib
import itertools
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_indexing import merge as merge_module
from data_indexing import streams
from data_indexing.errors import DataError
from data_indexing.format import bin_path, idx_path, manifest_path
from data_indexing.manifest import load_manifest, save_manifest
from data_indexing.merge import find_pairs, merge
from data_indexing.pairs import open_pairs
from data_indexing.reader import IndexedReader
from data_indexing.verify import verify
from data_indexing.writer import IndexedWriter
from tests.data_indexing.pairs_of_documents import documents, merge_by_megatron, read_pair, without_crc32, write_pair, write_texts
from tests.shared_data import shared


@pytest.fixture
def plain(tmp_path):
    """Three pairs without manifests, with documents of several sequences and empty ones."""
    prefixes = [tmp_path / name for name in "abc"]
    counter = itertools.count()
    for prefix, sizes in zip(prefixes, ([[2], [1, 3]], [[0], [5], []], [[4, 4]]), strict=True):
        with IndexedWriter(prefix, np.int32) as writer:
            for lengths in sizes:
                writer.add_document(list(itertools.islice(counter, sum(lengths))), lengths)
    return prefixes


@pytest.fixture
def parts(byte_tokenizer, tmp_path):
    """Two tokenized pairs with manifests, of 30 and 20 documents."""
    sizes = {"fi": 30, "en": 20}
    return [write_texts(tmp_path / name, [f"{name} {n}" for n in range(size)], byte_tokenizer) for name, size in sizes.items()]


def manifest_of(prefix: Path) -> Any:
    return load_manifest(prefix)


def documents_of(prefix):
    with IndexedReader(prefix) as reader:
        return [tuple(reader.document(index).tolist()) for index in range(reader.num_documents)]


@pytest.mark.parametrize("piece_bytes", [1, 5, 1_000])
def test_a_merge_in_order_is_byte_for_byte_megatrons(plain, tmp_path, piece_bytes, monkeypatch):
    merge_by_megatron(plain, tmp_path / "theirs")
    monkeypatch.setattr(merge_module, "_PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(merge_module, "BATCH_SEQUENCES", piece_bytes)
    merge(plain, tmp_path / "ours")
    for path in (bin_path, idx_path):
        assert path(tmp_path / "ours").read_bytes() == path(tmp_path / "theirs").read_bytes()


def test_the_manifest_lists_the_parts_and_adds_them_up(parts, tmp_path):
    counts = merge(parts, tmp_path / "m", shuffle_seed=5)
    manifest = manifest_of(tmp_path / "m")
    made = [manifest_of(prefix) for prefix in parts]
    assert (counts.num_documents, counts.num_empty_documents) == (50, 2)
    assert counts.num_tokens == sum(part.counts.num_tokens for part in made)
    assert (manifest.counts, manifest.shuffle_seed) == (counts, 5)
    assert (manifest.tokenizer, manifest.policy) == (made[0].tokenizer, made[0].policy)
    assert [(part.name, part.num_documents, part.bin_sha256) for part in manifest.parts] == [
        ("fi", 30, made[0].bin_sha256),
        ("en", 20, made[1].bin_sha256),
    ]
    assert [file.name for file in manifest.inputs] == ["fi.jsonl", "en.jsonl"]


@pytest.mark.parametrize(("rejected", "total"), [((3, 4), 7), ((3, None), None)])
def test_rejected_documents_are_added_up_where_all_parts_know_them(parts, tmp_path, rejected, total):
    for prefix, count in zip(parts, rejected, strict=True):
        manifest = manifest_of(prefix)
        counts = dataclasses.replace(manifest.counts, num_rejected_documents=count)
        save_manifest(prefix, dataclasses.replace(manifest, counts=counts))
    assert merge(parts, tmp_path / "m").num_rejected_documents == total


def test_what_a_part_without_manifest_leaves_open_stays_open(parts, tmp_path):
    manifest_path(parts[1]).unlink()
    merge(parts, tmp_path / "m")
    manifest = manifest_of(tmp_path / "m")
    assert manifest.tokenizer is manifest.policy is manifest.counts.num_text_bytes is None
    assert manifest.parts[1].bin_sha256 is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": {"sha256": "0" * 64}}, r"en: tokenizer is bytes 0000000000000000, that of .*fi is bytes"),
        ({"policy": {"bos": "none"}}, r"en: policy is bos none \(256\), eod document \(257\), that of .*fi is bos doc"),
        ({"counts": {"num_tokens": 1}}, r"en\.json: says 20 documents and 1 tokens, the pair holds 20 and"),
    ],
)
def test_parts_that_differ_are_refused_by_name(parts, tmp_path, changes, message):
    manifest = manifest_of(parts[1])
    replaced = {key: dataclasses.replace(getattr(manifest, key), **value) for key, value in changes.items()}
    save_manifest(parts[1], dataclasses.replace(manifest, **replaced))
    with pytest.raises(DataError, match=message):
        merge(parts, tmp_path / "m")
    assert not idx_path(tmp_path / "m").exists()


def test_another_dtype_is_refused_by_name(plain, tmp_path):
    with IndexedWriter(tmp_path / "small", np.uint16) as writer:
        writer.add_document([1])
    with pytest.raises(DataError, match=r"small: dtype is uint16, that of .*a is int32"):
        merge([*plain, tmp_path / "small"], tmp_path / "m")


def test_a_pair_cannot_be_merged_into_itself_or_twice(plain):
    with pytest.raises(DataError, match="both an input and the output"):
        merge(plain, plain[0], overwrite=True)
    with pytest.raises(DataError, match="given 2 times"):
        merge([plain[0], plain[0]], plain[0].with_name("m"))


def test_an_existing_output_is_refused(plain, tmp_path):
    merge(plain, tmp_path / "m")
    with pytest.raises(DataError, match="exists"):
        merge(plain, tmp_path / "m")
    merge(plain[:1], tmp_path / "m", overwrite=True)
    assert len(documents_of(tmp_path / "m")) == 2


@settings(max_examples=40, deadline=None)
@given(shards=st.lists(documents, min_size=1, max_size=5))
def test_merging_any_pairs_is_megatrons_merge_and_loses_nothing(tmp_path_factory, shards):
    folder = tmp_path_factory.mktemp("merge")
    prefixes = [write_pair(folder / str(number), docs) for number, docs in enumerate(shards)]
    merge(prefixes, folder / "m")
    assert read_pair(folder / "m") == [doc for docs in shards for doc in docs]
    assert verify(folder / "m").faults == ()
    merge_by_megatron(prefixes, folder / "theirs")
    for path in (bin_path, idx_path):
        assert path(folder / "m").read_bytes() == path(folder / "theirs").read_bytes()


@pytest.mark.parametrize("seed", [None, 5])
def test_the_hashes_of_the_manifest_are_those_of_the_files_on_disk(tmp_path, seed, monkeypatch):
    rng = np.random.default_rng(0)
    prefixes = [tmp_path / f"{number}" for number in range(40)]
    for prefix in prefixes:
        with IndexedWriter(prefix, np.int32) as writer:
            for size in rng.integers(0, 100_000, rng.integers(0, 4)):
                writer.add_document(rng.integers(0, 1 << 20, size, np.int32))
    monkeypatch.setattr(merge_module, "_PIECE_BYTES", 70_000)
    merge(prefixes, tmp_path / "m", shuffle_seed=seed, shuffle_memory_bytes=1_000_000)
    assert verify(tmp_path / "m").faults == ()
    if seed is None:
        assert bin_path(tmp_path / "m").read_bytes() == b"".join(bin_path(prefix).read_bytes() for prefix in prefixes)


def test_one_tokenizer_under_two_names_is_one_tokenizer(parts, tmp_path):
    manifest = manifest_of(parts[1])
    renamed = dataclasses.replace(manifest.tokenizer, name="elsewhere")
    save_manifest(parts[1], dataclasses.replace(manifest, tokenizer=renamed))
    merge(parts, tmp_path / "m")
    assert manifest_of(tmp_path / "m").tokenizer.name == "bytes"


@pytest.mark.parametrize("seed", [None, 1])
def test_a_damaged_pair_is_refused_by_name_and_nothing_is_left(plain, tmp_path, seed):
    raw = bytearray(idx_path(plain[1]).read_bytes())
    raw[34] ^= 1
    idx_path(plain[1]).write_bytes(raw)
    with pytest.raises(DataError, match=r"b\.idx: sequence 1 begins at byte 0 with 5 tokens, expected byte 4"):
        merge(plain, tmp_path / "out" / "m", shuffle_seed=seed)
    assert list((tmp_path / "out").iterdir()) == []


def refuse_to_merge(parts, output, seed, message):
    with pytest.raises(DataError, match=message):
        merge(parts, output, shuffle_seed=seed)
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("position", [0, 1, 40, -1])
def test_a_flipped_byte_of_tokens_is_refused_by_the_crc32_of_the_manifest(parts, tmp_path, seed, position):
    raw = bytearray(bin_path(parts[1]).read_bytes())
    raw[position] ^= 0xFF
    bin_path(parts[1]).write_bytes(raw)
    refuse_to_merge(parts, tmp_path / "out" / "m", seed, r"en\.bin: crc32 is \d+, the manifest says \d+; write or copy the pair")


@pytest.mark.parametrize("seed", [None, 1])
def test_tokens_that_are_not_those_of_an_old_manifest_are_refused_by_name(parts, tmp_path, seed):
    without_crc32(parts[1])
    raw = bytearray(bin_path(parts[1]).read_bytes())
    raw[40] ^= 1
    bin_path(parts[1]).write_bytes(raw)
    refuse_to_merge(parts, tmp_path / "out" / "m", seed, r"en\.bin: sha256 is \w{64}, the manifest says \w{64}; write or copy")


@pytest.mark.parametrize("seed", [None, 1])
def test_a_sound_index_that_is_not_that_of_the_manifest_is_refused_by_name(parts, tmp_path, seed):
    sizes = [len(document) for document in documents_of(parts[1])]
    with IndexedWriter(tmp_path / "other", np.uint16) as writer:
        for size in (sizes[0] + 1, sizes[1] - 1, *sizes[2:]):
            writer.add_document([0] * size)
    idx_path(tmp_path / "other").rename(idx_path(parts[1]))
    refuse_to_merge(parts, tmp_path / "out" / "m", seed, r"en\.idx: sha256 is \w{64}, the manifest says \w{64}; write or copy")


class SlowSha256:
    """Takes in bytes long after they were handed over."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.hexdigest = self._digest.hexdigest

    def update(self, data: Any) -> None:
        time.sleep(0.01)
        self._digest.update(data)


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("prepare", [Path, without_crc32])
def test_parts_larger_than_the_buffers_are_what_their_manifests_say(byte_tokenizer, tmp_path, seed, prepare, monkeypatch):
    monkeypatch.setattr(merge_module, "_PIECE_BYTES", 70_000)
    monkeypatch.setattr(streams, "hashlib", SimpleNamespace(sha256=SlowSha256))
    prefixes = [write_texts(tmp_path / name, [f"{name}{n:03}" * 10_000 for n in range(15)], byte_tokenizer) for name in "ab"]
    merge([prepare(prefix) for prefix in prefixes], tmp_path / "m", shuffle_seed=seed, shuffle_memory_bytes=1_000_000)
    assert verify(tmp_path / "m").faults == ()
    assert manifest_of(tmp_path / "m").counts.num_documents == 30


def test_a_bin_that_shrinks_under_the_merge_is_named(plain, tmp_path, monkeypatch):
    def shrink_afterwards(*arguments):
        pairs = open_pairs(*arguments)
        monkeypatch.setattr(merge_module, "_append_index", lambda *_: None)
        os.truncate(bin_path(plain[1]), 4)
        return pairs

    monkeypatch.setattr(merge_module, "open_pairs", shrink_afterwards)
    with pytest.raises(DataError, match=r"b\.bin: read 4 bytes, expected 20; the file changed"):
        merge(plain, tmp_path / "out" / "m")
    assert list((tmp_path / "out").iterdir()) == []


def test_no_pairs_are_an_error(tmp_path):
    with pytest.raises(DataError, match="no pairs to merge"):
        merge([], tmp_path / "m")


def test_the_foreign_pair_is_shuffled_with_every_document_kept(tmp_path):
    foreign = shared("megatron_foreign") / "meg-gpt2-openwebtext_text_document"
    merge([foreign], tmp_path / "m", shuffle_seed=1, shuffle_memory_bytes=1_000_000)
    assert sorted(documents_of(tmp_path / "m")) == sorted(documents_of(foreign))
    assert manifest_of(tmp_path / "m").tokenizer is None


def test_pairs_are_found_in_a_folder_by_name(plain, tmp_path):
    (tmp_path / "notes.txt").touch()
    assert find_pairs(tmp_path) == plain
    bin_path(plain[1]).unlink()
    with pytest.raises(DataError, match=r"b\.bin: missing, its other half is there"):
        find_pairs(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.bin/\.idx pairs"):
        find_pairs(tmp_path / "empty")
    with pytest.raises(DataError, match="No such file"):
        find_pairs(tmp_path / "none")
