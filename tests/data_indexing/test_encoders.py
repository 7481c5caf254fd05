import json
import random
import sys
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from data_indexing import encoders
from data_indexing.checker import Checker, Sample
from data_indexing.encoders import (
    DISPUTED_RANGES,
    EncoderFaultError,
    FastEncoder,
    ReferenceEncoder,
    is_disputed,
    plain_definition,
    probe_texts,
)
from data_indexing.manifest import load_manifest
from data_indexing.reader import IndexedReader
from data_indexing.tokenize import TokenizeOptions, tokenize_files
from data_indexing.tokenizer import TextTokenizer
from tests.shared_data import shared

REAL = [
    ("text_fi/fincore-dev.jsonl", "text", 60),
    ("text_fi/wikipedia-fi-validation-sample.jsonl", "text", 60),
    ("text_en/c4_demo.jsonl", "text", 100),
    ("code/cpython-3.11-lib.jsonl", "text", 30),
    ("math/gsm8k/test.jsonl", "answer", 300),
    ("math/aqua/test.jsonl", "rationale", 100),
]
SPELT = ["<|end_of_text|>", "<|begin_of_text|>", "<|eot_id|>", "<|reserved_special_token_247|>", "<|end_of", "_text|>"]
TRICKY = [" ", "  ", "\n", "\r\n", "\t", "\0", "'s", "'LL", "'\u017f", "\u0130", "1", "1234567", "\u0663", "\u00bd", "a", "\u00e4"]
pieces = st.one_of(st.sampled_from(SPELT + TRICKY), st.text(max_size=8), st.text("ab '\n1", max_size=8))
texts = st.lists(pieces, max_size=12).map("".join)


@pytest.fixture(scope="module")
def both(llama3):
    return FastEncoder(llama3), ReferenceEncoder(llama3)


def equal(both, texts):
    return all(np.array_equal(fast, right) for fast, right in zip(*(encoder.encode(texts) for encoder in both), strict=True))


@pytest.mark.parametrize(("name", "field", "count"), REAL)
def test_both_encoders_agree_on_real_text(both, name, field, count):
    with shared(name).open("rb") as stream:
        assert equal(both, [json.loads(stream.readline())[field][:20_000] for _ in range(count)])


@settings(max_examples=400, deadline=None)
@given(st.lists(texts, max_size=4))
def test_both_encoders_agree_on_any_text_with_special_tokens_spelt_out(both, found):
    assert equal(both, found)


def test_both_encoders_agree_on_every_character_but_the_disputed_ones(both):
    fast, reference = both
    disputed = {chr(code) for first, last in DISPUTED_RANGES for code in range(first, last + 1)}
    assigned = [*range(0xD800), *range(0xE000, 0x34000), *range(0xE0000, 0xE0200), 0x10FFFF]
    characters = [chr(code) for code in assigned if chr(code) not in disputed]
    # Letters, digits and signs part from what stands beside them in other ways.
    for start in range(0, len(characters), 20_000):
        text = "".join(f"{character}'s1{character}23 {character}\n" for character in characters[start : start + 20_000])
        assert np.array_equal(fast.encode([text])[0], reference.encode([text])[0]), hex(ord(characters[start]))


def test_texts_with_disputed_characters_get_the_ids_of_the_reference(both):
    texts = [f"{chr(first)}'s1{chr(first)}23{filler}" for first, _ in DISPUTED_RANGES for filler in ("", "x" * 300, "\u20ac" * 300)]
    assert all(map(is_disputed, texts))
    assert equal(both, texts)


@pytest.mark.parametrize("filler", ["", "a", "\u00e4", "\u20ac", "\U0001f642"])
@pytest.mark.parametrize("count", [1, 10, 100, 10_000])
def test_a_disputed_character_is_found_among_any_others(filler, count):
    assert not is_disputed(filler * count)
    for first, last in DISPUTED_RANGES:
        assert is_disputed(filler * count + chr(first))
        assert is_disputed(chr(last) + filler * count)


def test_long_runs_are_no_trouble(both):
    assert equal(both, ["a" * 100_000, " " * 100_000, "\n" * 100_000, "ab" * 50_000, "1" * 10_000, "\u00e4!" * 20_000])


def test_the_probe_brings_out_what_a_wrong_encoder_does(llama3, both):
    fast, _ = both
    probe = probe_texts(llama3.facts.special_tokens)
    check = Checker(llama3)
    ids = fast.encode(probe)
    assert check(Sample(probe, [item.tolist() for item in ids])) is None
    definition = json.loads(plain_definition(llama3))
    assert definition["added_tokens"] == []
    # One that knows special tokens in text, and one with another pattern.
    definition["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\p{N}+|[^\p{L}\p{N}]+"
    for wrong in (llama3.definition, json.dumps(definition)):
        try:
            encode = encoders._guarded(encoders._load_backend, wrong).encode
        except EncoderFaultError:
            continue
        assert check(Sample(probe, [encode(text).tolist() for text in probe])) is not None


def test_other_kinds_of_byte_level_tokenizers_agree_too():
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    trained.train_from_iterator(["Hei maailma, mit\u00e4 kuuluu? Don't worry, it's 1234."] * 20, trainer)
    trained.add_special_tokens(["<s>", "</s>"])
    tokenizer = TextTokenizer(trained.to_str(), name="small", config={})
    both = FastEncoder(tokenizer), ReferenceEncoder(tokenizer)
    assert equal(both, [*probe_texts(["<s>", "</s>"]), "x<s>y </s>", "Hei maailma"])


def test_what_gigatoken_does_not_know_is_a_fault_with_a_reason(monkeypatch):
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer = TextTokenizer(words.to_str(), name="words", config={})
    with pytest.raises(EncoderFaultError):
        FastEncoder(tokenizer)
    monkeypatch.setitem(sys.modules, "gigatoken.gigatoken_rs", None)
    with pytest.raises(EncoderFaultError, match=r"ModuleNotFoundError|ImportError"):
        FastEncoder(tokenizer)


def test_the_words_that_gigatoken_keeps_do_not_fill_the_memory(llama3, monkeypatch):
    monkeypatch.setattr(encoders, "_GROWN_BYTES", 20 << 20)
    fast, chance = FastEncoder(llama3), random.Random(0)
    start = encoders._resident_bytes()
    for _ in range(12):
        text = " ".join(f"{chance.randrange(2**40):x}" for _ in range(50_000)).translate(LETTERS)
        ids = fast.encode([text])[0]
        # Without a new beginning it would be over 90 MB.
        assert encoders._resident_bytes() < start + (60 << 20)
    assert ids.tolist() == ReferenceEncoder(llama3).encode([text])[0].tolist()


LETTERS = str.maketrans("0123456789", "ghijklmnop")
ADDED = [
    (AddedToken("foobarium"), None, True),
    (AddedToken("foobarium", single_word=True), None, False),
    (AddedToken("foobarium", lstrip=True), None, True),
    (AddedToken("foobarium", rstrip=True), None, True),
    (AddedToken("\u00c4rsytt\u00e4\u00e4", normalized=True), normalizers.NFC(), False),
    (AddedToken("\u00c4rsytt\u00e4\u00e4", normalized=False), normalizers.NFC(), False),
]


@pytest.mark.parametrize(("token", "normalizer", "alike"), ADDED)
def test_an_added_token_that_the_encoders_find_in_different_places_makes_the_reference_encode(
    byte_tokenizer, write_lines, tmp_path, token, normalizer, alike
):
    inner = Tokenizer.from_str(byte_tokenizer.definition)
    if normalizer:
        inner.normalizer = normalizer
    inner.add_tokens([token])
    tokenizer = TextTokenizer(inner.to_str(), name="added", config=byte_tokenizer.config)
    texts = [f"plain text x{token.content}x ", f" {normalize('NFD', token.content)} {token.content}."]
    options = TokenizeOptions(workers=0)
    tokenize_files([write_lines([{"text": text} for text in texts])], tmp_path / "p", tokenizer=tokenizer, options=options)
    manifest = load_manifest(tmp_path / "p")
    assert manifest is not None
    assert manifest.tokenization is not None
    assert manifest.tokenization.encoder == ("gigatoken" if alike else "tokenizers")
    with IndexedReader(tmp_path / "p") as reader:
        written = [reader.document(number).tolist()[1:-1] for number in range(2)]
    assert written == tokenizer.encode_batch(texts)
