import numpy as np
import pytest

from data_indexing.errors import DataError
from data_indexing.statistics import Frequency, LengthBin, measure, render
from tests.data_indexing.pairs_of_documents import write_pair
from tests.shared_data import shared

DOCS = [[[5, 5, 7]], [], [[5], [9, 7]], [[3] * 9]]


@pytest.fixture
def prefix(tmp_path):
    return write_pair(tmp_path / "p", DOCS)


def test_lengths_fall_into_powers_of_two_and_equal_counts_into_the_order_of_ids(prefix):
    found = measure(prefix, top=3)
    assert found.lengths == (LengthBin(0, 0, 1), LengthBin(2, 3, 2), LengthBin(8, 15, 1))
    assert found.tokens == (Frequency(3, 9), Frequency(5, 3), Frequency(7, 2))
    assert (found.num_documents, found.num_tokens) == (4, 15)


def test_the_text_names_shares_and_spells_tokens(prefix, byte_tokenizer):
    lines = "".join(render(measure(prefix, top=1), byte_tokenizer)).splitlines()
    assert lines[2].split() == ["2", "-", "3", "2", "50.00", "%", "#" * 40]
    assert lines[-1].split()[:4] == ["3", "9", "60.00", "%"]
    assert lines[-1].endswith(repr(byte_tokenizer.decode([3])))


def test_a_pair_without_documents_has_statistics(tmp_path):
    found = measure(write_pair(tmp_path / "p", []), top=5)
    assert (found.lengths, found.tokens) == ((), ())
    assert len(list(render(found, None))) == 2


@pytest.mark.parametrize("token", [-1, 1 << 24])
def test_numbers_that_are_no_ids_are_refused(tmp_path, token):
    with pytest.raises(DataError, match="no token ids; see `poro data verify`"):
        measure(write_pair(tmp_path / "p", [[[token]]]), top=1)


def test_the_foreign_pair_ends_each_document_with_its_most_special_token():
    found = measure(shared("megatron_foreign") / "meg-gpt2-openwebtext_text_document", top=5_000)
    assert sum(item.num_documents for item in found.lengths) == 1_000
    assert sum(item.count for item in found.tokens) == 1_361_845
    assert Frequency(4_999, 1_000) in found.tokens
    assert np.all(np.diff([item.count for item in found.tokens]) <= 0)
