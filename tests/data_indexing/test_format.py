from pathlib import Path

import numpy as np
import pytest

import data_indexing
from data_indexing.format import DTYPES, Header, dtype_for_vocab, idx_path, pack_header, unpack_header
from data_indexing.manifest import load_manifest
from tests.data_indexing.pairs_of_documents import write_texts


@pytest.fixture(scope="module")
def megatron_dtype():
    return pytest.importorskip("megatron.core.datasets.indexed_dataset").DType


def test_dtype_codes_are_those_of_megatron(megatron_dtype):
    assert {code: dtype.type for code, dtype in DTYPES.items()} == {
        member.value: megatron_dtype.dtype_from_code(member.value) for member in megatron_dtype
    }


@pytest.mark.parametrize("vocab_size", [1, 50_257, 65_499, 65_500, 65_536, 128_256])
def test_the_dtype_of_a_vocabulary_is_the_one_megatron_chooses(megatron_dtype, vocab_size):
    assert dtype_for_vocab(vocab_size) == np.dtype(megatron_dtype.optimal_dtype(vocab_size))


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_a_header_is_34_bytes_and_comes_back(dtype, tmp_path):
    header = Header(dtype, 2**40, 7)
    raw = pack_header(header)
    assert len(raw) == 34
    assert unpack_header(raw, tmp_path) == header


def test_the_worked_example_of_the_readme_is_true(llama3, tmp_path):
    write_texts(tmp_path / "fi", ["Kerro minulle Suomen historiasta.", "Tell me about Finland."], llama3)
    manifest = load_manifest(tmp_path / "fi")
    assert manifest is not None
    assert manifest.tokenizer is not None
    assert idx_path(tmp_path / "fi").stat().st_size == 82
    readme = (Path(data_indexing.__file__).parent / "README.md").read_text()
    for digest in (manifest.tokenizer.sha256, manifest.bin_sha256, manifest.idx_sha256):
        assert f'"{digest[:8]}..."' in readme
    assert f'"bin_crc32": {manifest.bin_crc32},' in readme
    assert f'"num_tokens": {manifest.counts.num_tokens}, ' in readme
