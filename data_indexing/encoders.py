"""Two encoders of text: gigatoken, which is fast, and the Hugging Face tokenizer, which says what is right.

gigatoken knows special tokens in text only as control tokens, so it is built without them; then both treat
"<|end_of_text|>" in a web page as the characters it is made of. Texts on which the two are known to differ go to the
reference. That the rest agree is checked on `probe_texts` when a run starts and on a sample of every chunk.
"""

import hashlib
import json
import re
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from data_indexing.cache import cached
from data_indexing.errors import DataError
from data_indexing.pieces import PIECE_CHARACTERS, Text, pieces, text_parts, to_str
from data_indexing.tokenizer import TextTokenizer

EncoderName = Literal["gigatoken", "tokenizers"]
Ids = npt.NDArray[np.uint32]

# Letters and digits that Unicode 17 added: gigatoken 0.10 knows them, tokenizers 0.23 takes them for symbols.
DISPUTED_RANGES = (
    *((0x88F, 0x88F), (0xC5C, 0xC5C), (0xCDC, 0xCDC), (0xA7CE, 0xA7CF), (0xA7D2, 0xA7D2), (0xA7D4, 0xA7D4), (0xA7F1, 0xA7F1)),
    *((0x10940, 0x10959), (0x10EC5, 0x10EC7), (0x11DB0, 0x11DDB), (0x11DE0, 0x11DE9), (0x16EA0, 0x16EB8), (0x16EBB, 0x16ED3)),
    *((0x16FF2, 0x16FF6), (0x187F8, 0x187FF), (0x18D09, 0x18D1E), (0x18D80, 0x18DF2), (0x1E6C0, 0x1E6DE), (0x1E6E0, 0x1E6E2)),
    *((0x1E6E4, 0x1E6E5), (0x1E6E7, 0x1E6ED), (0x1E6F0, 0x1E6F4), (0x1E6FE, 0x1E6FF), (0x2B73A, 0x2B73F), (0x2CEA2, 0x2CEAD)),
    (0x323B0, 0x33479),
)
_LAST_BMP = 0xFFFF
_DISPUTED_BMP = tuple(chr(code) for first, last in DISPUTED_RANGES if last <= _LAST_BMP for code in range(first, last + 1))
_DISPUTED = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in DISPUTED_RANGES) + "]")
_PROBE_STEP = 151
# Memory that an encoder may take on before it is built anew, which takes half a second.
_GROWN_BYTES = 240 << 20
# To be raised when what is cached changes.
_CACHE_VERSION = 1
_CACHED_CHARACTERS = 1 << 20


class EncoderFaultError(DataError):
    """gigatoken cannot be used for this tokenizer, or gave other ids than the reference; says why."""


class Encoder(Protocol):
    """What both encoders do."""

    def encode(self, texts: Sequence[Text]) -> list[Ids]:
        """Ids of each text, nothing added."""
        ...

    def encode_in_pieces(self, text: Text) -> Iterator[Ids]:
        """Ids of a large text, one part after the other."""
        ...


@dataclass(frozen=True)
class ReferenceEncoder:
    """The Hugging Face tokenizer."""

    tokenizer: TextTokenizer

    def encode(self, texts: Sequence[Text]) -> list[Ids]:
        """Ids of each text, nothing added."""
        ids: list[Ids] = []
        for batch in _batches(texts):
            if len(batch) == 1:
                ids.append(np.concatenate(list(self.encode_in_pieces(batch[0]))))
            else:
                ids += map(_to_ids, self.tokenizer.encode_batch(list(map(to_str, batch))))
        return ids

    def encode_in_pieces(self, text: Text) -> Iterator[Ids]:
        """Ids of a large text, one part after the other."""
        for piece in _pieces(self.tokenizer, text):
            yield _to_ids(self.tokenizer.encode_batch([piece])[0])


@dataclass
class FastEncoder:
    """gigatoken, with the reference for texts on which the two are known to differ."""

    tokenizer: TextTokenizer
    _backend: Any = field(init=False)
    _least_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        """EncoderFaultError where gigatoken is not installed or does not know this kind of tokenizer."""
        self._build()

    def encode(self, texts: Sequence[Text]) -> list[Ids]:
        """Ids of each text, nothing added."""
        ids: list[Ids] = _guarded(self._encode, texts)
        for number in [number for number, text in enumerate(texts) if is_disputed(text)]:
            ids[number] = np.concatenate(list(self.encode_in_pieces(texts[number])))
        return ids

    def encode_in_pieces(self, text: Text) -> Iterator[Ids]:
        """Ids of a large text, one part after the other."""
        for piece in _pieces(self.tokenizer, text):
            if is_disputed(piece):
                yield _to_ids(self.tokenizer.encode_batch([piece])[0])
            else:
                # Beside a large text there is less room.
                self._renew(_GROWN_BYTES // 2)
                yield _guarded(self._encode, [piece])[0]

    def _encode(self, texts: Sequence[Text]) -> list[Ids]:
        self._renew(_GROWN_BYTES)
        return list(map(self._backend.encode, texts))

    def _renew(self, limit: int) -> None:
        """Build gigatoken anew once it has grown too far, for it remembers every word that it has met."""
        num_bytes = _resident_bytes()
        self._least_bytes = min(self._least_bytes, num_bytes)
        if num_bytes > self._least_bytes + limit:
            self._backend = None
            self._build()

    def _build(self) -> None:
        self._backend = _guarded(_load_backend, _cached_plain_definition(self.tokenizer))
        self._least_bytes = _resident_bytes()


def build_encoder(name: EncoderName, tokenizer: TextTokenizer) -> Encoder:
    """Encoder of this name."""
    return FastEncoder(tokenizer) if name == "gigatoken" else ReferenceEncoder(tokenizer)


def encoder_version(name: EncoderName) -> str | None:
    """Version of the package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def plain_definition(tokenizer: TextTokenizer) -> str:
    """Definition without special tokens and whatever adds them."""
    definition = json.loads(tokenizer.definition)
    added = [token for token in definition.get("added_tokens") or [] if not token.get("special")]
    unused = dict.fromkeys(("post_processor", "truncation", "padding"))
    return json.dumps(definition | unused | {"added_tokens": added}, ensure_ascii=False)


def is_disputed(text: Text) -> bool:
    """Whether a text holds a character on which the encoders are known to differ."""
    if not isinstance(text, str):
        return any(map(is_disputed, text_parts(text)))
    if text.isascii():
        return False
    # CPython keeps a text in 1, 2 or 4 bytes a character, as its largest one needs; to know which saves the search.
    num_bytes = sys.getsizeof(text)
    if num_bytes < 2 * len(text):
        return False
    if num_bytes < 4 * len(text):
        return any(character in text for character in _DISPUTED_BMP)
    return _DISPUTED.search(text) is not None


def probe_texts(specials: Sequence[str]) -> list[str]:
    """Texts that bring out differences: all of Unicode in steps, white space, numbers, contractions, special tokens spelt out."""
    characters = [chr(code) for code in range(0x20000) if code < 0x250 or code % _PROBE_STEP == 0]
    plain = [character for character in characters if not 0xD800 <= ord(character) < 0xE000]
    pieces = [f"{character}'s 1{character}23 {character}\n" for character in plain]
    texts = ["".join(pieces[start : start + 100]) for start in range(0, len(pieces), 100)]
    spelt = [f"{token}a {token}\n{token}{token}" for token in [*specials[:16], *specials[-2:]]]
    return [*texts, *spelt, *_AWKWARD]


def spelt_texts(tokens: Sequence[str]) -> list[str]:
    """Texts in which tokens that are no control tokens stand alone, within words, beside spaces and written otherwise."""
    return ["\n.\n".join(_spellings(token)) for token in tokens]


def _spellings(token: str) -> list[str]:
    others = [token.upper(), token.lower(), *(normalize(form, token) for form in ("NFC", "NFD", "NFKC", "NFKD"))]
    beside = [f"x{token}x", f"a {token}b", f"a{token} b", f"  {token}  ", f"1{token}1", f"_{token}_", f"({token})", token + token]
    return [token, *beside, f"{token}\u0301", *others, *(f"x {other} x" for other in others), f"\t{token}\n{token}"]


_AWKWARD = (
    "",
    "Hyvää yötä, sanoi Äiti; \u201cei\u201d \u2026 it\u2019s DON'T we'LL I'd\u017f'S",
    "def f(x):\n    if x:\n\treturn  1_000_000.5e-3\r\n\r\n  \n \t # ok   \n",
    "1234567 12 345678901 \u0663\u0664\u0665\u0666 \u00bd\u00b2\u2167",
    "a\u0301e\u0308 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1ee \u4e2d\u6587 \ud55c\uae00 \u0939\u093f",
    " \u00a0\u2003\u3000\u2028\u2029\x85\x0b\x0c\x1c\x00\ufeff\u200b end ",
    " " * 50 + "\n" * 20 + "!" * 70 + "a" * 300 + "\t" * 9,
)


def _cached_plain_definition(tokenizer: TextTokenizer) -> str:
    key = f"plain definition {_CACHE_VERSION} {hashlib.sha256(tokenizer.definition.encode()).hexdigest()}"
    large = len(tokenizer.definition) > _CACHED_CHARACTERS
    return cached(key, lambda: plain_definition(tokenizer)) if large else plain_definition(tokenizer)


def _pieces(tokenizer: TextTokenizer, text: Text) -> Iterator[str]:
    if tokenizer.facts.can_be_cut and len(text) > PIECE_CHARACTERS:
        yield from pieces(text)
    else:
        yield to_str(text)


def _to_ids(ids: list[int]) -> Ids:
    return np.array(ids, np.uint32)


def _batches(texts: Sequence[Text]) -> list[list[Text]]:
    """Small texts together, each large one alone."""
    batches: list[list[Text]] = [[]]
    size = 0
    for text in texts:
        if batches[-1] and size + len(text) > PIECE_CHARACTERS:
            batches.append([])
            size = 0
        batches[-1].append(text)
        size += len(text)
    return batches


def _load_backend(definition: str) -> Any:
    # Not the package itself: that would import a dozen modules which are not needed here.
    from gigatoken.gigatoken_rs import load_hf_json

    return load_hf_json(definition)


def _resident_bytes() -> int:
    """Memory of this process but for files mapped into it; 0 where the system does not say."""
    try:
        resident, shared = map(int, Path("/proc/self/statm").read_bytes().split()[1:3])
        return (resident - shared) * resource.getpagesize()
    except OSError:
        return 0


def _guarded(function: Any, argument: Any) -> Any:
    """Call into gigatoken: its panics are no Exception."""
    try:
        return function(argument)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise EncoderFaultError(f"{type(error).__name__}: {str(error).splitlines()[:1]}") from None
