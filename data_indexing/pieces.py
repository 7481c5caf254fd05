"""Cut a large text where its ids are those of its pieces one behind the other, so that encoding it takes the memory of a piece.

A tokenizer first parts a text into words, which it then encodes each for itself. With the patterns below no word goes on
from a letter to anything but letters, nor from anything but white space to a space; what comes before a word has no say in it,
and what comes after it only where it is white space. So between a letter and a sign, and before a space, there is always a
border, and the pieces on both sides of it are parted as they would be within the whole.
"""

import codecs
import json
import re
from collections.abc import Iterator

from data_indexing.llama3 import SPLIT_PATTERN

Text = str | bytes | memoryview
"""A text; a large one as its UTF-8."""

# Up to this size a line is read as Python objects, and a text is a str.
LARGE_LINE_BYTES = 8 << 20
PIECE_CHARACTERS = 1 << 18
_SPLIT = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False}
# Llama 3's, which is also GPT-4's, and GPT-2's, which is the default of ByteLevel.
_KNOWN = ([_SPLIT, _BYTES | {"use_regex": False}], [_BYTES | {"use_regex": True}])
# Signs that no version of Unicode takes for letters. The search is greedy: it finds the last border of all.
_BORDER = re.compile(r".*(?:\S(?= )|[^\W\d_](?=[\s!-/:-@\[-`{-~\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f]))", re.DOTALL)


def can_be_cut(definition: str) -> bool:
    """Whether the ids of a text are those of its `pieces`, for a tokenizer.json: one of the known patterns, nothing beside it."""
    parts = json.loads(definition)
    added = [token for token in parts.get("added_tokens") or [] if not token.get("special")]
    splitter = parts.get("pre_tokenizer") or {}
    steps = splitter.get("pretokenizers", []) if splitter.get("type") == "Sequence" else [splitter]
    plain = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    return parts.get("normalizer") is None and not added and plain in _KNOWN


def pieces(text: Text) -> Iterator[str]:
    """A text in pieces of about PIECE_CHARACTERS, longer where there is no place to cut."""
    kept: list[str] = []
    for part in text_parts(text):
        found = _BORDER.match(part)
        if found:
            yield "".join([*kept, found[0]])
            kept = [part[found.end() :]]
        else:
            kept.append(part)
    yield "".join(kept)


def text_parts(text: Text) -> Iterator[str]:
    """A text character by character in parts of PIECE_CHARACTERS; UnicodeDecodeError where it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(text), PIECE_CHARACTERS):
        part = text[start : start + PIECE_CHARACTERS]
        yield part if isinstance(part, str) else decoder.decode(part, final=start + PIECE_CHARACTERS >= len(text))


def to_str(text: Text) -> str:
    """All of a text."""
    return text if isinstance(text, str) else str(text, "utf-8")


def is_utf8(text: bytes | memoryview) -> bool:
    """Whether a text can be decoded, without decoding it at once."""
    try:
        return all(part is not None for part in text_parts(text))
    except UnicodeDecodeError:
        return False
