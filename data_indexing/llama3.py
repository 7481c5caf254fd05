"""Turn Llama 3's `tokenizer.model` (base64 BPE ranks) into the definition of a `tokenizer.json`."""

import base64
import binascii
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
    """Definition as in `tokenizer.json`; like Meta's own, it puts <|begin_of_text|> first when asked for specials."""
    ranks = _read_ranks(path)
    # Imported here: transformers takes a second, and only this conversion needs it.
    from tokenizers import AddedToken, processors
    from transformers.convert_slow_tokenizer import TikTokenConverter

    converter: Any = TikTokenConverter(vocab_file=str(path), pattern=SPLIT_PATTERN)
    # Its own way to read the file would need the tiktoken package.
    converter.load_tiktoken_bpe = lambda _: ranks
    tokenizer = converter.converted()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special_tokens()])
    template = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A",
        pair=f"{BOS_TOKEN} $A {BOS_TOKEN}:1 $B:1",
        special_tokens=[(BOS_TOKEN, NUM_RANKS)],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return str(tokenizer.to_str())


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
