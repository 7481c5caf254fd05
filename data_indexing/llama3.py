"""Turn Llama 3's `tokenizer.model` (base64 BPE ranks) into the definition of a `tokenizer.json`."""

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from data_indexing.errors import DataError

BOS_TOKEN = "<|begin_of_text|>"  # noqa: S105
EOS_TOKEN = "<|end_of_text|>"  # noqa: S105
NUM_RANKS = 128_000
# The published file holds only the ranks; the pattern and the 256 names are part of Llama 3's own program.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMED = {
    0: BOS_TOKEN,
    1: EOS_TOKEN,
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
_NUM_SPECIAL = 256


def special_tokens() -> list[str]:
    """The 256 special tokens of Llama 3.1 in the order of their ids, from 128,000 on."""
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(_NUM_SPECIAL))
    return [_NAMED.get(position) or next(reserved) for position in range(_NUM_SPECIAL)]


def convert_tokenizer_model(path: Path) -> str:
    """Definition as in `tokenizer.json`; like Meta's own, it puts <|begin_of_text|> first when asked for specials.

    It is the one that transformers' converter makes, without its imports.
    """
    ranks = _read_ranks(path)
    specials = [_added_token(NUM_RANKS + number, token) for number, token in enumerate(special_tokens())]
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": specials,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [_SPLIT, _byte_level(prefix=False, trim=True, regex=False)]},
        "post_processor": {"type": "Sequence", "processors": [_byte_level(prefix=True, trim=False, regex=True), _BOS_TEMPLATE]},
        "decoder": _byte_level(prefix=True, trim=True, regex=True),
        "model": _model(ranks),
    }
    return json.dumps(definition, ensure_ascii=False, separators=(",", ":"))


def _model(ranks: dict[bytes, int]) -> dict[str, Any]:
    names = {token: "".join(map(_BYTE_NAMES.__getitem__, token)) for token in ranks}
    merges = [[names[left], names[right]] for left, right in _merges(ranks)]
    vocab = {names[token]: rank for token, rank in ranks.items()}
    unused = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": True}
    return {"type": "BPE"} | unused | flags | {"vocab": vocab, "merges": merges}


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every way to make a token of two others: by the token's rank, then by those of its parts."""
    found = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = ranks.get(token[:cut]), ranks.get(token[cut:])
            if left is not None and right is not None:
                found.append((rank, left, right, cut, token))
    return [(token[:cut], token[cut:]) for _, _, _, cut, token in sorted(found)]


def _byte_names() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + number) for number, byte in enumerate(others)}
    return [names[byte] for byte in range(256)]


def _added_token(token_id: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content} | flags | {"special": True}


def _byte_level(*, prefix: bool, trim: bool, regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": trim, "use_regex": regex}


def _special(type_id: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": BOS_TOKEN, "type_id": type_id}}


def _sequence(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}


_BYTE_NAMES = _byte_names()
_SPLIT = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
_BOS_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [_special(0), _sequence("A", 0)],
    "pair": [_special(0), _sequence("A", 0), _special(1), _sequence("B", 1)],
    "special_tokens": {BOS_TOKEN: {"id": BOS_TOKEN, "ids": [NUM_RANKS], "tokens": [BOS_TOKEN]}},
}


def _read_ranks(path: Path) -> dict[bytes, int]:
    try:
        pairs = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error):
        raise DataError(
            f"{path}: not base64 BPE ranks (SentencePiece?); convert it with transformers and give its tokenizer.json"
        ) from None
    if len(ranks) != NUM_RANKS:
        raise DataError(f"{path}: {len(ranks)} ranks, Llama 3 has {NUM_RANKS}; give a tokenizer.json instead")
    return ranks
