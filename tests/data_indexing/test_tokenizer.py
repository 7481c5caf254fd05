import base64
import json
import pickle
import shutil

import pytest
from tokenizers import AddedToken, Tokenizer

from data_indexing.errors import DataError
from data_indexing.llama3 import SPLIT_PATTERN, special_tokens
from data_indexing.tokenizer import TextTokenizer, load_tokenizer
from tests.shared_data import shared

SENTENCE = "Kerro minulle Suomen historiasta."
IDS = [42, 41396, 1332, 41154, 17360, 6431, 7135, 72, 14635, 13]


def test_llama_3_gives_the_published_ids(llama3):
    assert llama3.encode_batch([SENTENCE, ""]) == [IDS, []]
    assert llama3.decode(IDS) == SENTENCE
    assert (llama3.vocab_size, llama3.bos_id, llama3.eos_id) == (128_256, 128_000, 128_001)


def test_llama_3_special_tokens_stand_at_their_official_ids():
    tokens = special_tokens()
    assert len(set(tokens)) == len(tokens) == 256
    places = ("begin_of_text", "end_of_text", "finetune_right_pad_id", "start_header_id", "end_header_id", "eom_id")
    assert [tokens.index(f"<|{name}|>") for name in (*places, "eot_id", "python_tag")] == [0, 1, 4, 6, 7, 8, 9, 10]
    reserved = {2: 0, 3: 1, 5: 2, 11: 3, 255: 247}
    assert {place: tokens[place] for place in reserved} == {
        place: f"<|reserved_special_token_{number}|>" for place, number in reserved.items()
    }


@pytest.mark.parametrize("token", ["<|end_of_text|>", "<|begin_of_text|>", "<|eot_id|>", "<|reserved_special_token_9|>"])
def test_a_special_token_spelt_in_a_text_stays_text(llama3, token):
    text = f"before{token}after {token}"
    (ids,) = llama3.encode_batch([text])
    assert max(ids) < 128_000
    assert llama3.decode(ids, skip_special_tokens=True) == text


def test_special_ids_are_decoded_unless_skipped(llama3):
    ids = [128_000, *IDS, 128_001]
    assert llama3.decode(ids) == f"<|begin_of_text|>{SENTENCE}<|end_of_text|>"
    assert llama3.decode(ids, skip_special_tokens=True) == SENTENCE


def test_a_worker_gets_the_same_tokenizer(llama3):
    copy = pickle.loads(pickle.dumps(llama3))
    assert copy.encode_batch(["a<|end_of_text|>b"]) == llama3.encode_batch(["a<|end_of_text|>b"])
    assert (copy.sha256, copy.name, copy.eos_id) == (llama3.sha256, "llama3", 128_001)


def test_transformers_loads_what_is_saved_with_bos_and_chat_template(llama3, tmp_path):
    transformers = pytest.importorskip("transformers")
    shutil.copy(shared("tokenizers/llama3/chat_template_llama3_1.jinja"), tmp_path / "chat_template.jinja")
    llama3.save_hf(tmp_path)
    carried = load_tokenizer(tmp_path)
    carried.save_hf(tmp_path / "again")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert carried.sha256 == llama3.sha256
    assert theirs(SENTENCE)["input_ids"] == [128_000, *IDS]
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (128_000, 128_001, 128_256)
    assert len(theirs.chat_template) == 4_614
    text = "Hei , maailma ! Don 't"
    assert theirs.decode(theirs(text, add_special_tokens=False)["input_ids"]) == text


def test_settings_of_a_definition_do_not_cut_or_pad_documents(byte_tokenizer):
    inner = Tokenizer.from_str(byte_tokenizer.definition)
    inner.enable_truncation(2)
    inner.enable_padding(length=50)
    tokenizer = TextTokenizer(inner.to_str(), name="cut", config={})
    assert tokenizer.encode_batch(["abcdef"]) == byte_tokenizer.encode_batch(["abcdef"])
    assert tokenizer.bos_id is tokenizer.eos_id is None


def test_the_hash_depends_on_what_makes_ids_and_on_nothing_else(byte_tokenizer):
    definition = json.loads(byte_tokenizer.definition)
    renamed = TextTokenizer(json.dumps(definition, indent=1), name="other", config={})
    assert renamed.sha256 == byte_tokenizer.sha256
    definition["model"]["ignore_merges"] = True
    changed = TextTokenizer(json.dumps(definition), name="other", config={})
    assert changed.sha256 != byte_tokenizer.sha256


def test_the_control_tokens_may_be_written_as_objects(byte_tokenizer, tmp_path):
    byte_tokenizer.save_hf(tmp_path)
    config = {"bos_token": {"content": "<s>", "special": True}, "eos_token": "</s>", "auto_map": "x"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(path)
        assert (loaded.bos_id, loaded.eos_id, loaded.vocab_size) == (256, 257, 258)
        assert loaded.config == {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("other.txt", b"", "no tokenizer here"),
        ("tokenizer.model", b"\n\x0e\n\x05<unk>\x15\x00", "not base64 BPE ranks"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "2 ranks, Llama 3 has 128000"),
        ("tokenizer.json", b"{}", "give the tokenizer.json of a current release"),
        ("tokenizer.json", b"\xff", "not UTF-8 at byte 0"),
    ],
)
def test_what_is_no_tokenizer_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path)


def test_a_damaged_config_is_named_with_its_line(byte_tokenizer, tmp_path):
    byte_tokenizer.save_hf(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{\n"bos_token": ')
    with pytest.raises(DataError, match=r"tokenizer_config\.json:2: "):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("raw", ["[]", "5", "null", '{"bos_token": 5}', '{"eos_token": ["a"]}', '{"unk_token": {"content": 5}}'])
def test_a_config_of_another_kind_is_named(byte_tokenizer, tmp_path, raw):
    byte_tokenizer.save_hf(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(raw)
    with pytest.raises(DataError, match=r"tokenizer_config\.json: .* not (an object|a string); copy the tokenizer again"):
        load_tokenizer(tmp_path)


def test_the_conversion_of_tokenizer_model_is_that_of_transformers(llama3):
    transformers = pytest.importorskip("transformers.convert_slow_tokenizer")
    path = shared("tokenizers/llama3/tokenizer.model")
    converter = transformers.TikTokenConverter(vocab_file=str(path), pattern=SPLIT_PATTERN)
    # Its own way to read the file would need the tiktoken package.
    lines = (line.split() for line in path.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    converter.load_tiktoken_bpe = lambda _: ranks
    theirs = converter.converted()
    theirs.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special_tokens()])
    found, expected = json.loads(llama3.definition), json.loads(theirs.to_str())
    assert {**found, "post_processor": None} == {**expected, "post_processor": None}
    assert llama3.facts.adds_bos


def test_what_takes_long_is_cached_and_a_damaged_cache_is_made_anew(llama3, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = load_tokenizer(shared("tokenizers/llama3"))
    kept = {path: path.read_bytes() for path in (tmp_path / "megatron_poro").iterdir()}
    assert len(kept) == 2
    with monkeypatch.context() as patched:
        patched.setattr("data_indexing.llama3.convert_tokenizer_model", None)
        patched.setattr("data_indexing.tokenizer.Tokenizer", None)
        again = load_tokenizer(shared("tokenizers/llama3"))
    assert (again.definition, again.facts) == (first.definition, first.facts) == (llama3.definition, llama3.facts)
    for path in kept:
        path.write_bytes(path.read_bytes()[:-1])
    assert load_tokenizer(shared("tokenizers/llama3")).facts == first.facts
    assert {path: path.read_bytes() for path in kept} == kept


def test_without_a_place_for_a_cache_all_works_as_well(byte_tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    byte_tokenizer.save_hf(tmp_path / "tokenizer")
    assert load_tokenizer(tmp_path / "tokenizer").facts == byte_tokenizer.facts
