"""How finely tokenizers cut a text: tokens a word and bytes a token, as numbers, as a table and as a picture.

A word is what stands between white space. Control tokens are not counted.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from data_indexing.chunks import cut_segments
from data_indexing.documents import read_documents
from data_indexing.errors import DataError
from data_indexing.inputs import InputPath, find_inputs, plan_segments
from data_indexing.pieces import to_str
from data_indexing.tokenizer import TextTokenizer

_BATCH_CHARACTERS = 1 << 20
_NO_LIMIT = sys.maxsize


@dataclass(frozen=True)
class Fertility:
    """Counts of one text cut by one tokenizer."""

    text: str
    tokenizer: str
    num_words: int
    num_bytes: int
    num_tokens: int

    @property
    def tokens_per_word(self) -> float:
        """The smaller, the cheaper the language is for the model; NaN where there are no words."""
        return self.num_tokens / self.num_words if self.num_words else float("nan")

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes that a token stands for; NaN where there are no tokens."""
        return self.num_bytes / self.num_tokens if self.num_tokens else float("nan")


def measure_fertility(
    paths: Sequence[str | Path], tokenizers: Sequence[TextTokenizer], *, text_field: str = "text"
) -> list[list[Fertility]]:
    """A list for each file, with an entry for each tokenizer, and a last one for all files where there are several.

    Files, folders and globs are read as a tokenisation reads them, but what it would reject is a DataError.
    """
    sources = [source for path in paths for source in find_inputs([path])]
    texts = [_measure_file(source, tokenizers, text_field) for source in sources]
    if len(texts) > 1:
        texts.append([_total(rows) for rows in zip(*texts, strict=True)])
    return texts


def fertility_table(texts: Sequence[Sequence[Fertility]]) -> Iterator[str]:
    """Lines of a table."""
    rows = list(chain.from_iterable(texts))
    width = max(len(row.text) for row in rows)
    name_width = max(len("tokenizer"), *(len(row.tokenizer) for row in rows))
    counts = f"{'words':>13} {'bytes':>15} {'tokens':>13}"
    yield f"{'text':{width}}  {'tokenizer':{name_width}} {counts} {'tokens/word':>12} {'bytes/token':>12}\n"
    for row in rows:
        counts = f"{row.num_words:>13,} {row.num_bytes:>15,} {row.num_tokens:>13,}"
        ratios = f"{row.tokens_per_word:>12.3f} {row.bytes_per_token:>12.3f}"
        yield f"{row.text:{width}}  {row.tokenizer:{name_width}} {counts} {ratios}\n"


def save_picture(texts: Sequence[Sequence[Fertility]], path: str | Path) -> None:
    """Bars of both ratios, a group for each text and a colour for each tokenizer; the suffix of the path is the format."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DataError(f"{path}: pictures need matplotlib; install megatron_poro[plot] or leave out --picture") from None
    names = [row.tokenizer for row in texts[0]]
    figure = Figure(figsize=(3 + 2.2 * len(texts), 4.5), layout="constrained")
    for axes, ratio in zip(figure.subplots(1, 2), ("tokens_per_word", "bytes_per_token"), strict=True):
        for number, name in enumerate(names):
            heights = [getattr(rows[number], ratio) for rows in texts]
            places = [place + 0.8 * number / len(names) for place in range(len(texts))]
            axes.bar(places, heights, 0.8 / len(names), label=name)
        middles = [place + 0.4 - 0.4 / len(names) for place in range(len(texts))]
        axes.set_xticks(middles, [Path(rows[0].text).name for rows in texts], rotation=20, ha="right")
        axes.set_ylabel(ratio.replace("_", " "))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(names))
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; choose another picture") from None


def _measure_file(source: InputPath, tokenizers: Sequence[TextTokenizer], text_field: str) -> list[Fertility]:
    num_words = num_bytes = 0
    num_tokens = [0] * len(tokenizers)
    for texts in _batches(_texts(source, text_field)):
        num_words += sum(len(text.split()) for text in texts)
        num_bytes += sum(len(text.encode()) for text in texts)
        for number, tokenizer in enumerate(tokenizers):
            num_tokens[number] += sum(map(len, tokenizer.encode_batch(texts)))
    return [
        Fertility(str(source.path), tokenizer.name, num_words, num_bytes, n)
        for tokenizer, n in zip(tokenizers, num_tokens, strict=True)
    ]


def _total(rows: Sequence[Fertility]) -> Fertility:
    sums = (sum(getattr(row, name) for row in rows) for name in ("num_words", "num_bytes", "num_tokens"))
    return Fertility("all", rows[0].tokenizer, *sums)


def _texts(source: InputPath, text_field: str) -> Iterator[str]:
    """Texts of a file; one of plain text comes in pieces of whole lines, for it may be larger than the memory."""
    is_text = source.kind == "text"
    num_documents = num_bytes = 0
    for cut in cut_segments(plan_segments([replace(source, kind="lines") if is_text else source]), text_field, limit=_NO_LIMIT):
        chunk = replace(cut.chunk, lengths=(cut.chunk.num_bytes,)) if is_text else cut.chunk
        documents = read_documents(chunk, text_field, limit=_NO_LIMIT)
        for reject in documents.rejects:
            if is_text:
                raise DataError(f"{source.path}: {reject.reason}, counted from byte {num_bytes}; correct the file")
            raise DataError(f"{source.path}:{num_documents + reject.number}: {reject.reason}; correct the file")
        num_documents += documents.num_read
        num_bytes += chunk.num_bytes
        for text in documents.texts:
            yield to_str(text)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    yield batch
