import numpy as np
import pytest

from data_indexing.format import DTYPES, Header, dtype_for_vocab, pack_header, unpack_header


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
