"""The hash of weights: any one flipped bit and any exchange of numbers changes it, the way of storing does not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_poro.engine import fingerprint
from megatron_poro.engine.fingerprint import hash_tensors

NUMBERS = torch.arange(1, 1026, dtype=torch.float32)
INTEGERS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


@given(st.integers(0, 1024), st.integers(0, 15), st.sampled_from(list(INTEGERS)))
def test_one_flipped_bit_changes_it(place: int, bit: int, dtype: torch.dtype) -> None:
    tensor = NUMBERS.to(dtype)
    flipped = tensor.clone()
    flipped.view(INTEGERS[dtype])[place] ^= -(2**15) if bit == 15 and dtype == torch.bfloat16 else 1 << bit
    assert hash_tensors([tensor]) != hash_tensors([flipped])


def test_exchanged_numbers_and_exchanged_tensors_change_it() -> None:
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([3.0, 4.0, 1.0, 2.0])
    assert hash_tensors([a]) != hash_tensors([b])
    assert hash_tensors([a, b]) != hash_tensors([b, a])


@pytest.mark.parametrize("dtype", list(INTEGERS))
def test_it_is_the_same_each_time_and_for_every_size_of_block(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hash_tensors([NUMBERS.to(dtype), NUMBERS[:7].to(dtype)])
    assert hash_tensors([NUMBERS.to(dtype), NUMBERS[:7].to(dtype)]) == first
    monkeypatch.setattr(fingerprint, "BLOCK", 64)
    blocks = hash_tensors([NUMBERS.to(dtype)])
    assert hash_tensors([NUMBERS.to(dtype)]) == blocks


def test_a_view_hashes_like_its_copy() -> None:
    matrix = NUMBERS[:1024].view(32, 32)
    assert hash_tensors([matrix.t()]) == hash_tensors([matrix.t().contiguous()])


def test_nothing_hashes_to_zero() -> None:
    assert hash_tensors([]) == 0
