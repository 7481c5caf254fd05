"""The sentence model of an input: read from a folder, or trained on the first of the text."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_indexing.chunks import cut_segments
from data_indexing.documents import read_documents
from data_indexing.format import Prefix
from data_indexing.inputs import InputPath, find_inputs, plan_segments
from data_indexing.pieces import to_str
from data_indexing.sentences import SentenceModel, load_sentence_model, train_sentence_model

_TRAINING_CHARACTERS = 4_000_000
_LIMIT_BYTES = 128 << 20


def find_sentence_model(
    inputs: Sequence[str | Path],
    folder: str | Path | None,
    *,
    language: str,
    text_field: str,
    keep_newlines: bool,
    output: Prefix | None = None,
) -> SentenceModel:
    """Model of a folder, or trained on the inputs where none is given; all shards of one input get the same.

    What a run to `output` has left among the inputs is none.
    """
    if folder is not None:
        return load_sentence_model(folder, language=language, keep_newlines=keep_newlines)
    print("no Punkt tables given: training a sentence model on the first of the input", file=sys.stderr)
    return train_sentence_model(_first_texts(find_inputs(inputs, output), text_field), keep_newlines=keep_newlines)


def _first_texts(inputs: Sequence[InputPath], text_field: str) -> Iterator[str]:
    left = _TRAINING_CHARACTERS
    for cut in cut_segments(plan_segments(inputs), text_field, limit=_LIMIT_BYTES):
        for text in read_documents(cut.chunk, text_field, limit=_LIMIT_BYTES).texts:
            yield to_str(text)[:left]
            left -= len(text)
            if left <= 0:
                return
