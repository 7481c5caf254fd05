import pytest

from data_indexing.errors import DataError
from data_indexing.format import manifest_path
from data_indexing.inspect import inspect, render
from data_indexing.tokenizer import TextTokenizer
from tests.data_indexing.pairs_of_documents import write_texts

TEXTS = ["yksi\nkaksi", "kolme </s> neljä", " viisi "]


@pytest.fixture
def prefix(byte_tokenizer, tmp_path):
    return write_texts(tmp_path / "p", TEXTS, byte_tokenizer)


def test_documents_are_the_text_they_were_made_from(prefix, byte_tokenizer):
    shown = inspect(prefix, byte_tokenizer, documents=range(1, 3))
    assert [(document.index, document.text) for document in shown.documents] == [(1, TEXTS[1]), (2, TEXTS[2])]
    assert (shown.num_documents, shown.num_sequences, shown.dtype) == (3, 3, "uint16")


def test_each_document_stands_under_a_header_with_its_number_and_size(prefix, byte_tokenizer):
    shown = inspect(prefix, byte_tokenizer, documents=range(2))
    assert "".join(render(shown, raw=False)) == (
        f"{prefix}: 3 documents, 3 sequences, {shown.num_tokens} tokens of uint16\n"
        f"=== document 0: 12 tokens ===\n{TEXTS[0]}\n"
        f"=== document 1: {len(TEXTS[1].encode()) + 2} tokens ===\n{TEXTS[1]}\n"
    )


def test_raw_is_the_text_and_nothing_else(prefix, byte_tokenizer):
    shown = inspect(prefix, byte_tokenizer, documents=range(3))
    assert "".join(render(shown, raw=True)) == "".join(TEXTS)


def test_without_a_manifest_the_tokenizers_own_control_tokens_are_left_out(prefix, byte_tokenizer):
    manifest_path(prefix).unlink()
    assert inspect(prefix, byte_tokenizer, documents=range(1)).documents[0].text == TEXTS[0]


def test_without_a_tokenizer_ids_are_shown(prefix, byte_tokenizer):
    shown = inspect(prefix, None, documents=range(2, 3))
    (ids,) = byte_tokenizer.encode_batch([TEXTS[2]])
    assert list(render(shown, raw=True)) == [" ".join(map(str, [256, *ids, 257]))]


def test_documents_that_are_not_there_are_refused(prefix):
    with pytest.raises(DataError, match=r"holds documents 0:3, asked for 1:4"):
        inspect(prefix, None, documents=range(1, 4))
    assert inspect(prefix, None, documents=range(0)).documents == ()


def test_another_tokenizer_is_refused_by_name(prefix, byte_tokenizer):
    definition = byte_tokenizer._tokenizer.to_str().replace('"ignore_merges":false', '"ignore_merges":true')
    other = TextTokenizer(definition, name="other", config={})
    with pytest.raises(DataError, match=r"made with tokenizer bytes .*, not other .*; give the former"):
        inspect(prefix, other, documents=range(1))
