"""The tokenizer as training data needs it: plain text in, ids out, no special token that nobody asked for.

BOS and the end of a document are a policy of the data (tokenize.py), so they are never added here; and text that spells
a special token, such as "<|end_of_text|>" in a web page, is encoded as the ordinary characters it is made of.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data_indexing import llama3
from data_indexing.errors import DataError

_DEFINITION_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_RANKS_FILE = "tokenizer.model"
_TEMPLATE_FILE = "chat_template.jinja"
_CARRIED_KEYS = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template", "model_max_length")
# What decides how text becomes ids and ids become text; the post-processor only adds special tokens.
_HASHED_KEYS = ("normalizer", "pre_tokenizer", "model", "decoder", "added_tokens")


class TextTokenizer:
    """Ids of texts and back; picklable, so that worker processes need not convert anything again.

    `config` holds the keys of tokenizer_config.json that travel with it; `vocab_size` is the largest id plus one.
    """

    def __init__(self, definition: str, *, name: str, config: Mapping[str, Any]) -> None:
        """`definition` is the text of a tokenizer.json."""
        self.name = name
        self.config = dict(config)
        self._definition = definition
        self._tokenizer = _build_tokenizer(definition, name)
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.bos_id = self._id("bos_token")
        self.eos_id = self._id("eos_token")

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, nothing added."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of the ids."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    @cached_property
    def sha256(self) -> str:
        """Hash of the definition: equal for a tokenizer.model and the tokenizer.json made from it."""
        definition = json.loads(self._tokenizer.to_str())
        kept = _without_defaults({key: definition.get(key) for key in _HASHED_KEYS})
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Everything in one string, for `from_json`."""
        return json.dumps({"definition": self._definition, "name": self.name, "config": self.config})

    @classmethod
    def from_json(cls, text: str) -> "TextTokenizer":
        """Tokenizer from the string that `to_json` made."""
        return cls(**json.loads(text))

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Pickle the definition: the inner tokenizer would lose `encode_special_tokens` in silence."""
        return TextTokenizer.from_json, (self.to_json(),)

    def save_hf(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer reads."""
        # No clean-up of spaces: decoded text must be the text.
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _DEFINITION_FILE).write_text(self._definition, encoding="utf-8")
        config = json.dumps(settings | self.config, indent=2, ensure_ascii=False)
        (folder / _CONFIG_FILE).write_text(config + "\n", encoding="utf-8")

    def _id(self, key: str) -> int | None:
        token = self.config.get(key)
        return None if token is None else self._tokenizer.token_to_id(token)


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """Tokenizer from a Hugging Face directory, a tokenizer.json, or Llama 3's tokenizer.model or its folder."""
    file = _definition_file(Path(path))
    name = file.resolve().parent.name
    if file.suffix == ".json":
        return TextTokenizer(_read_text(file), name=name, config=_read_config(file.parent))
    config = {"bos_token": llama3.BOS_TOKEN, "eos_token": llama3.EOS_TOKEN} | _read_config(file.parent)
    return TextTokenizer(llama3.convert_tokenizer_model(file), name=name, config=config)


def _definition_file(path: Path) -> Path:
    candidates = [path / _DEFINITION_FILE, path / _RANKS_FILE] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(f"{path}: no tokenizer here; give a directory or file with {_DEFINITION_FILE} or {_RANKS_FILE}")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG_FILE
    config: dict[str, Any] = {}
    if path.exists():
        try:
            config = json.loads(_read_text(path))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: {error.msg}; copy the tokenizer again") from None
    if (folder / _TEMPLATE_FILE).exists():
        config["chat_template"] = _read_text(folder / _TEMPLATE_FILE)
    return {key: _content(config[key]) for key in _CARRIED_KEYS if config.get(key) is not None}


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


def _without_defaults(value: Any) -> Any:
    """Drop null and false, the defaults of fields that a newer library adds, so that the hash outlives an upgrade."""
    if isinstance(value, dict):
        return {key: _without_defaults(item) for key, item in value.items() if item is not None and item is not False}
    return [_without_defaults(item) for item in value] if isinstance(value, list) else value
