import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_indexing import merge as merge_module
from data_indexing.errors import DataError
from data_indexing.format import bin_path, idx_path, manifest_path
from data_indexing.manifest import load_manifest, save_manifest
from data_indexing.merge import merge
from data_indexing.reader import IndexedReader
from data_indexing.tokenize import TokenizeOptions, tokenize_files
from data_indexing.writer import IndexedWriter


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
def parts(byte_tokenizer, write_lines, tmp_path):
    """Two tokenized pairs with manifests, of 30 and 20 documents."""
    prefixes = [tmp_path / "fi", tmp_path / "en"]
    for prefix, count in zip(prefixes, (30, 20), strict=True):
        lines = [{"text": f"{prefix.name} {number}"} for number in range(count)]
        path = write_lines([*lines, {"text": ""}], f"{prefix.name}.jsonl")
        tokenize_files([path], prefix, tokenizer=byte_tokenizer, options=TokenizeOptions(workers=1))
    return prefixes


def manifest_of(prefix: Path) -> Any:
    return load_manifest(prefix)


def documents(prefix):
    with IndexedReader(prefix) as reader:
        return [tuple(reader.document(index).tolist()) for index in range(reader.num_documents)]


@pytest.mark.parametrize("batch_tokens", [1, 4, 1_000])
def test_a_merge_in_order_is_byte_for_byte_megatrons(plain, tmp_path, batch_tokens, monkeypatch):
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.int32)
    for prefix in plain:
        builder.add_index(str(prefix))
    builder.finalize(str(tmp_path / "theirs.idx"))
    monkeypatch.setattr(merge_module, "_BATCH_TOKENS", batch_tokens)
    merge(plain, tmp_path / "ours")
    for path in (bin_path, idx_path):
        assert path(tmp_path / "ours").read_bytes() == path(tmp_path / "theirs").read_bytes()


def test_a_shuffle_keeps_every_document_and_its_sequences(plain, tmp_path):
    merge(plain, tmp_path / "m", shuffle_seed=3)
    merge(plain, tmp_path / "ordered")
    assert sorted(documents(tmp_path / "m")) == sorted(documents(tmp_path / "ordered"))
    with IndexedReader(tmp_path / "m") as reader:
        assert sorted(reader.sequence_lengths) == [0, 1, 2, 3, 4, 4, 5]


def test_a_shuffle_is_decided_by_its_seed_alone(parts, tmp_path, monkeypatch):
    merge(parts, tmp_path / "a", shuffle_seed=1)
    monkeypatch.setattr(merge_module, "_SHUFFLE_BATCH_DOCUMENTS", 7)
    merge(parts, tmp_path / "b", shuffle_seed=1)
    merge(parts, tmp_path / "c", shuffle_seed=2)
    assert bin_path(tmp_path / "a").read_bytes() == bin_path(tmp_path / "b").read_bytes()
    assert documents(tmp_path / "a") != documents(tmp_path / "c")
    assert documents(tmp_path / "a") != documents(parts[0]) + documents(parts[1])


def test_the_order_of_a_seed_never_changes():
    # Written down once: the raw stream of PCG64 is fixed by numpy's compatibility policy.
    assert merge_module._random_order(12, 1234).tolist() == [5, 6, 3, 9, 7, 4, 1, 10, 11, 2, 8, 0]


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
        ({"policy": {"bos": "none"}}, r"en: policy is bos none, eod document, that of .*fi is bos document"),
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
    assert len(documents(tmp_path / "m")) == 2
