"""Small pairs for tests: documents as lists of sequences, and everything a folder holds."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st

from data_indexing.format import dtype_for_vocab
from data_indexing.manifest import Counts, InputFile, Manifest, Policy, TokenizerRecord, load_manifest, save_manifest
from data_indexing.reader import IndexedReader
from data_indexing.tokenizer import TextTokenizer
from data_indexing.writer import IndexedWriter

Document = list[list[int]]
documents = st.lists(st.lists(st.lists(st.integers(0, 65_000), max_size=6), max_size=4), max_size=8)
"""Documents of several sequences, empty ones among both."""


def write_pair(prefix: Path, docs: Sequence[Document], dtype: npt.DTypeLike = np.int32) -> Path:
    with IndexedWriter(prefix, dtype) as writer:
        for doc in docs:
            writer.add_document(list(itertools.chain(*doc)), [len(sequence) for sequence in doc])
    return prefix


def read_pair(prefix: Path) -> list[Document]:
    with IndexedReader(prefix) as reader:
        ends = np.cumsum(reader.sequence_lengths)
        tokens = reader.read(0, reader.num_tokens)
        sequences = [part.tolist() for part in np.split(tokens, ends)[: ends.size]]
        bounds = itertools.pairwise(reader.document_indices.tolist())
        return [sequences[start:end] for start, end in bounds]


def merge_by_megatron(prefixes: Sequence[Path], output: Path) -> None:
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    builder = megatron.IndexedDatasetBuilder(f"{output}.bin", dtype=np.int32)
    with mock.patch.object(megatron.gc, "collect"):  # a third of a second each, with torch loaded
        for prefix in prefixes:
            builder.add_index(str(prefix))
    builder.finalize(f"{output}.idx")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_texts(prefix: Path, texts: Sequence[str], tokenizer: TextTokenizer) -> Path:
    """A pair with its manifest, as if made from PREFIX.jsonl with one empty text left out."""
    assert tokenizer.bos_id is not None
    assert tokenizer.eos_id is not None
    docs = [[tokenizer.bos_id, *ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(texts)]
    with IndexedWriter(prefix, dtype_for_vocab(tokenizer.vocab_size)) as writer:
        for doc in docs:
            writer.add_document(doc)
        writer.seal()
        manifest = Manifest(
            tokenizer=TokenizerRecord(tokenizer.name, tokenizer.sha256, tokenizer.vocab_size),
            policy=Policy("document", tokenizer.bos_id, "document", tokenizer.eos_id),
            dtype=writer.dtype.name,
            counts=Counts(len(docs), writer.num_tokens, 1, sum(len(text.encode()) for text in texts)),
            inputs=(InputFile(f"{prefix.name}.jsonl", 0, ""),),
            bin_sha256=writer.bin_sha256,
            bin_crc32=writer.bin_crc32,
            idx_sha256=writer.idx_sha256,
        )
        writer.add_manifest(manifest)
    return prefix


def without_crc32(prefix: Path) -> Path:
    """The pair with a manifest of before the CRC-32 was in it."""
    manifest = load_manifest(prefix)
    assert manifest is not None
    save_manifest(prefix, dataclasses.replace(manifest, bin_crc32=None))
    return prefix
