"""The tokenizer as training data needs it: plain text in, ids out, no special token that nobody asked for.

BOS and the end of a document are a policy of the data (tokenize.py), so they are never added here; and text that spells
a special token, such as "<|end_of_text|>" in a web page, is encoded as the ordinary characters it is made of.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data_indexing import llama3
from data_indexing.cache import cached
from data_indexing.errors import DataError
from data_indexing.pieces import can_be_cut

_DEFINITION_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_RANKS_FILE = "tokenizer.model"
_TEMPLATE_FILE = "chat_template.jinja"
_TOKEN_KEYS = ("bos_token", "eos_token", "pad_token", "unk_token")
_CARRIED_KEYS = (*_TOKEN_KEYS, "chat_template", "model_max_length")
# To be raised when what is cached changes.
_CACHE_VERSION = 3
# What decides how text becomes ids and ids become text; the post-processor only adds special tokens.
_HASHED_KEYS = ("normalizer", "pre_tokenizer", "model", "decoder", "added_tokens")


@dataclass(frozen=True)
class Facts:
    """What one must load a tokenizer to know.

    `sha256` is that of the definition, equal for a tokenizer.model and the tokenizer.json made from it; `vocab_size` the
    largest id plus one; `adds_bos` whether the tokenizer itself puts BOS before a text when asked for special tokens;
    `special_tokens` their spellings, `added_tokens` those of tokens that are found in texts before all else; `can_be_cut` as
    in pieces.py.
    """

    sha256: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    adds_bos: bool
    special_tokens: tuple[str, ...]
    added_tokens: tuple[str, ...]
    can_be_cut: bool


class TextTokenizer:
    """Ids of texts and back; the library's tokenizer is built when it is first needed.

    `config` holds the keys of tokenizer_config.json that travel with it. Picklable.
    """

    def __init__(self, definition: str, *, name: str, config: Mapping[str, Any], facts: Facts | None = None) -> None:
        """`definition` is the text of a tokenizer.json; `facts` saves the time to find them."""
        self.name = name
        self.config = dict(config)
        self.definition = definition
        if facts is not None:
            self.facts = facts

    @cached_property
    def facts(self) -> Facts:
        """See there."""
        inner = self._tokenizer
        vocab_size = max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        bos_id = self._id("bos_token")
        adds_bos = bos_id is not None and inner.encode("").ids[:1] == [bos_id]
        added = sorted(inner.get_added_tokens_decoder().items())
        return Facts(
            sha256=_definition_sha256(inner),
            vocab_size=vocab_size,
            bos_id=bos_id,
            eos_id=self._id("eos_token"),
            adds_bos=adds_bos,
            special_tokens=tuple(token.content for _, token in added if token.special),
            added_tokens=tuple(token.content for _, token in added if not token.special),
            can_be_cut=can_be_cut(self.definition),
        )

    @property
    def sha256(self) -> str:
        """Hash of the definition."""
        return self.facts.sha256

    @property
    def vocab_size(self) -> int:
        """Largest id plus one."""
        return self.facts.vocab_size

    @property
    def bos_id(self) -> int | None:
        """Id of the token that opens a document, if it has one."""
        return self.facts.bos_id

    @property
    def eos_id(self) -> int | None:
        """Id of the token that closes a document, if it has one."""
        return self.facts.eos_id

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, nothing added."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of the ids."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the definition: the inner tokenizer would lose `encode_special_tokens` in silence."""
        return _rebuild, (self.definition, self.name, self.config, self.facts)

    def save_hf(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer reads."""
        # No clean-up of spaces: decoded text must be the text.
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _DEFINITION_FILE).write_text(self.definition, encoding="utf-8")
        config = json.dumps(settings | self.config, indent=2, ensure_ascii=False)
        (folder / _CONFIG_FILE).write_text(config + "\n", encoding="utf-8")

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return _build_tokenizer(self.definition, self.name)

    def _id(self, key: str) -> int | None:
        token = self.config.get(key)
        return None if token is None else self._tokenizer.token_to_id(token)


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """Tokenizer from a Hugging Face directory, a tokenizer.json, or Llama 3's tokenizer.model or its folder."""
    file = _definition_file(Path(path))
    config = _read_config(file.parent)
    if file.suffix == ".json":
        definition = _read_text(file)
    else:
        key = f"definition {_CACHE_VERSION} {hashlib.sha256(file.read_bytes()).hexdigest()}"
        definition = cached(key, lambda: llama3.convert_tokenizer_model(file))
        config = {"bos_token": llama3.BOS_TOKEN, "eos_token": llama3.EOS_TOKEN} | config
    name = file.resolve().parent.name
    return TextTokenizer(definition, name=name, config=config, facts=_load_facts(definition, name, config))


def _load_facts(definition: str, name: str, config: Mapping[str, Any]) -> Facts:
    tokens = [config.get("bos_token"), config.get("eos_token")]
    digest = hashlib.sha256(definition.encode()).hexdigest()
    key = f"facts {_CACHE_VERSION} {version('tokenizers')} {json.dumps(tokens)} {digest}"
    make = lambda: json.dumps(asdict(TextTokenizer(definition, name=name, config=config).facts))  # noqa: E731
    found = json.loads(cached(key, make))
    return Facts(**(found | {name: tuple(found[name]) for name in ("special_tokens", "added_tokens")}))


def _rebuild(definition: str, name: str, config: Mapping[str, Any], facts: Facts) -> TextTokenizer:
    return TextTokenizer(definition, name=name, config=config, facts=facts)


def _definition_file(path: Path) -> Path:
    candidates = [path / _DEFINITION_FILE, path / _RANKS_FILE] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(f"{path}: no tokenizer here; give a directory or file with {_DEFINITION_FILE} or {_RANKS_FILE}")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG_FILE
    raw: Any = {}
    if path.exists():
        try:
            raw = json.loads(_read_text(path))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: {error.msg}; copy the tokenizer again") from None
    if not isinstance(raw, dict):
        raise DataError(f"{path}: {type(raw).__name__}, not an object; copy the tokenizer again")
    config = {key: _content(raw[key]) for key in _CARRIED_KEYS if raw.get(key) is not None}
    for key in _TOKEN_KEYS:
        if not isinstance(config.get(key, ""), str):
            raise DataError(f"{path}: {key} is {type(config[key]).__name__}, not a string; copy the tokenizer again")
    if (folder / _TEMPLATE_FILE).exists():
        config["chat_template"] = _read_text(folder / _TEMPLATE_FILE)
    return config


def _content(value: Any) -> Any:
    """Older files write a token as an object with its flags beside it."""
    return value["content"] if isinstance(value, dict) and "content" in value else value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; copy the tokenizer again") from None


def _build_tokenizer(definition: str, name: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(definition)
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"tokenizer {name}: {error}; give the tokenizer.json of a current release") from None
    # A definition may come with the settings of whoever saved it, which would cut documents in silence.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _definition_sha256(tokenizer: Tokenizer) -> str:
    definition = json.loads(tokenizer.to_str())
    kept = _without_defaults({key: definition.get(key) for key in _HASHED_KEYS})
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _without_defaults(value: Any) -> Any:
    """Drop null and false, the defaults of fields that a newer library adds, so that the hash outlives an upgrade."""
    if isinstance(value, dict):
        return {key: _without_defaults(item) for key, item in value.items() if item is not None and item is not False}
    return [_without_defaults(item) for item in value] if isinstance(value, list) else value
