import json

import pytest

from data_indexing.errors import DataError
from data_indexing.reader import IndexedReader
from data_indexing.sentence_training import find_sentence_model
from data_indexing.sentences import load_sentence_model, train_sentence_model
from data_indexing.tokenize import TokenizeOptions, tokenize_files
from tests.shared_data import shared

TEXT = "Dr. Virtanen lives here. He said:\n\nIt rains.  Does it? Yes!"


@pytest.fixture(scope="module")
def english():
    return load_sentence_model(shared("nltk_data"))


def test_sentences_are_those_of_nltk(english):
    import nltk
    from nltk.tokenize.punkt import PunktTokenizer

    nltk.data.path.insert(0, str(shared("nltk_data")))
    right = PunktTokenizer("english")
    with shared("text_en/c4_demo.jsonl").open() as lines:
        for line, _ in zip(lines, range(50), strict=False):
            text = json.loads(line)["text"]
            assert english.split(text) == right.tokenize(text)
    assert english.split(TEXT) == ["Dr. Virtanen lives here.", "He said:\n\nIt rains.", "Does it?", "Yes!"]


def test_with_the_white_space_the_sentences_are_the_text(english):
    keeping = load_sentence_model(shared("nltk_data"), keep_newlines=True)
    for text in ("", " \n ", TEXT, " " + TEXT + "\n", TEXT * 40_000):
        assert "".join(keeping.split(text)) == text
    assert keeping.sha256 != english.sha256
    assert english.split(" \n ") == []


def test_a_language_is_found_in_a_folder_or_refused(tmp_path):
    assert load_sentence_model(shared("nltk_data"), language="finnish").abbreviations
    folder = shared("nltk_data/tokenizers/punkt_tab/finnish")
    assert load_sentence_model(folder) == load_sentence_model(shared("nltk_data"), language="finnish")
    with pytest.raises(DataError, match=r"no Punkt tables for 'klingon'.*leave the folder out"):
        load_sentence_model(shared("nltk_data"), language="klingon")
    for name in ("abbrev_types.txt", "collocations.tab", "sent_starters.txt"):
        (tmp_path / name).touch()
    (tmp_path / "ortho_context.tab").write_text("word\tmany\n")
    with pytest.raises(DataError, match="copy Punkt's tables again"):
        load_sentence_model(tmp_path)


def test_a_model_is_trained_on_the_input_where_no_folder_is_given(write_lines, capsys):
    texts = [f"Hän asui siellä v. {year} asti. Sitten hän lähti pois. Kukaan ei tiennyt." for year in range(1900, 1990)]
    path = write_lines([{"a": text} for text in texts])
    model = find_sentence_model([path], None, language="finnish", text_field="a", keep_newlines=False)
    assert model == train_sentence_model(texts)
    assert model.split("Se oli v. 1950 kai. Ei enää.") == ["Se oli v. 1950 kai.", "Ei enää."]
    assert "training a sentence model" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 2])
def test_sentences_are_the_sequences_of_a_document(english, byte_tokenizer, write_lines, tmp_path, workers):
    path = write_lines([{"text": TEXT}, {"text": " \n "}, {"text": "One."}])
    options = TokenizeOptions(sentences=english, workers=workers)
    counts = tokenize_files([path], tmp_path / "p", tokenizer=byte_tokenizer, options=options)
    assert (counts.num_documents, counts.num_empty_documents) == (2, 1)
    with IndexedReader(tmp_path / "p") as reader:
        assert reader.document_indices.tolist() == [0, 4, 5]
        sentences = [*english.split(TEXT), "One."]
        assert reader.sequence_lengths.tolist() == [
            len(sentence) + extra for sentence, extra in zip(sentences, (1, 0, 0, 1, 2), strict=True)
        ]
        first = reader.document(0).tolist()
        assert (first[0], first[-1]) == (256, 257)
        assert first[1:-1] == [i for ids in byte_tokenizer.encode_batch(sentences[:4]) for i in ids]
