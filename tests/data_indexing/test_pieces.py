import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from data_indexing import pieces
from data_indexing.encoders import FastEncoder, ReferenceEncoder
from data_indexing.pieces import can_be_cut, is_utf8, text_parts
from data_indexing.tokenizer import TextTokenizer

TRICKY = [
    "'s ",
    "'LL",
    "a'",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\n\n",
    "\t",
    "1",
    "1234",
    "\u00bd",
    "\u0301",
    "\u4e2d\u3002",
    ".",
    "...\n",
    "x",
    "_",
]
texts = st.lists(st.one_of(st.sampled_from(TRICKY), st.text(max_size=6), st.text("ab \n.'1", max_size=6)), max_size=30).map("".join)


@pytest.fixture(scope="module")
def gpt2_like():
    """What splits words by GPT-2's pattern."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    trained.train_from_iterator(["Hei maailma, it's 1234.\n\nab ba's  a\n"] * 20, trainer)
    return TextTokenizer(trained.to_str(), name="small", config={})


@pytest.fixture(scope="module")
def encoders(llama3, gpt2_like):
    return [kind(tokenizer) for tokenizer in (llama3, gpt2_like) for kind in (ReferenceEncoder, FastEncoder)]


def check(encoders, text, size):
    for encoder in encoders:
        assert encoder.tokenizer.facts.can_be_cut
        whole = encoder.encode([text])[0]
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(pieces, "PIECE_CHARACTERS", size)
            patched.setattr("data_indexing.encoders.PIECE_CHARACTERS", 0)
            assert np.concatenate(list(encoder.encode_in_pieces(text))).tolist() == whole.tolist()


@settings(max_examples=300, deadline=None)
@given(text=texts, size=st.integers(1, 9))
def test_the_ids_of_pieces_are_those_of_the_whole(encoders, text, size):
    check(encoders, text, size)


def test_any_character_may_be_cut_from_a_space(encoders):
    characters = [chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000 and (code < 0x3100 or code % 61 == 0)]
    check(encoders, "".join(f"{character} {character}\n{character}  a" for character in characters), 1)


def test_every_letter_may_be_cut_from_every_sign(encoders):
    signs = " \n\t\u00a0!\"'(),-./:;?[]`~\u3001\u3002\uff0c"
    letters = [chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000 and code % 61 == 0 and chr(code).isalpha()]
    check(encoders, "".join(f"{letter}{sign}" for letter in letters for sign in signs), 50)


@given(text=texts, size=st.integers(1, 9))
def test_parts_are_the_text_and_damage_is_seen(text, size):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pieces, "PIECE_CHARACTERS", size)
        for form in (text, text.encode(), memoryview(text.encode())):
            assert "".join(text_parts(form)) == "".join(pieces.pieces(form)) == text
        assert is_utf8(text.encode())
        assert not is_utf8(text.encode() + b"\xe4\xb8")


def test_a_tokenizer_with_anything_else_about_its_words_is_not_cut(llama3, gpt2_like):
    assert can_be_cut(llama3.definition)
    definition = json.loads(llama3.definition)
    other = json.loads(json.dumps(definition["pre_tokenizer"]))
    other["pretokenizers"][0]["pattern"]["Regex"] = r"[^.]+|."
    assert not can_be_cut(json.dumps(definition | {"pre_tokenizer": other}))
    assert not can_be_cut(json.dumps(definition | {"pre_tokenizer": None}))
    inner = Tokenizer.from_str(gpt2_like.definition)
    inner.normalizer = normalizers.NFC()
    assert not can_be_cut(inner.to_str())
    inner = Tokenizer.from_str(gpt2_like.definition)
    inner.add_tokens([AddedToken("a b")])
    assert not can_be_cut(inner.to_str())
    inner = Tokenizer.from_str(gpt2_like.definition)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert not can_be_cut(inner.to_str())
