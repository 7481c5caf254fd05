"""The sentence model of an input: read from a folder, or trained on the first of the text."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_indexing.chunks import cut_segments
from data_indexing.documents import read_documents
from data_indexing.inputs import find_inputs, plan_segments
from data_indexing.sentences import SentenceModel, load_sentence_model, train_sentence_model

_TRAINING_CHARACTERS = 4_000_000
_LIMIT_BYTES = 128 << 20


def find_sentence_model(
    inputs: Sequence[str | Path], folder: str | Path | None, *, language: str, text_field: str, keep_newlines: bool
) -> SentenceModel:
    """Model of a folder, or trained on the inputs where none is given; all shards of one input get the same."""
    if folder is not None:
        return load_sentence_model(folder, language=language, keep_newlines=keep_newlines)
    print("no Punkt tables given: training a sentence model on the first of the input", file=sys.stderr)
    return train_sentence_model(_first_texts(inputs, text_field), keep_newlines=keep_newlines)


def _first_texts(inputs: Sequence[str | Path], text_field: str) -> Iterator[str]:
    left = _TRAINING_CHARACTERS
    for cut in cut_segments(plan_segments(find_inputs(inputs)), text_field, limit=_LIMIT_BYTES):
        for text in read_documents(cut.chunk, text_field, limit=_LIMIT_BYTES).texts:
            yield text.decode()[:left] if isinstance(text, bytes) else text[:left]
            left -= len(text)
            if left <= 0:
                return
