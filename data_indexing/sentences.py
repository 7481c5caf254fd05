"""Split texts into sentences with NLTK's Punkt, from a folder of its tables or trained on the input; nothing is downloaded."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_indexing.errors import DataError

# As much at a time as Megatron gives to Punkt.
_PIECE_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class SentenceModel:
    """What Punkt knows of a language: abbreviations, pairs and starts of words, and how each word is written."""

    abbreviations: tuple[str, ...]
    collocations: tuple[tuple[str, str], ...]
    starters: tuple[str, ...]
    orthography: tuple[tuple[str, int], ...]
    keep_newlines: bool = False
    """Leave the white space behind a sentence with it, so that the sentences together are the text."""

    def split(self, text: str) -> list[str]:
        """Sentences in order, none of them empty."""
        pieces = (text[start : start + _PIECE_CHARACTERS] for start in range(0, len(text), _PIECE_CHARACTERS))
        return [sentence for piece in pieces for sentence in self._split_piece(piece)]

    @property
    def sha256(self) -> str:
        """Hash of all of it."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    def _split_piece(self, text: str) -> list[str]:
        spans = list(self._punkt.span_tokenize(text))
        if not self.keep_newlines:
            return [text[start:end] for start, end in spans]
        cuts = [0, *(start for start, _ in spans[1:]), len(text)]
        return [text[start:end] for start, end in pairwise(cuts)]

    @cached_property
    def _punkt(self) -> Any:
        # Imported here: NLTK takes a second.
        from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

        parameters = PunktParameters()
        parameters.abbrev_types = set(self.abbreviations)
        parameters.collocations = set(self.collocations)
        parameters.sent_starters = set(self.starters)
        parameters.ortho_context.update(self.orthography)
        return PunktSentenceTokenizer(parameters)


def load_sentence_model(folder: str | Path, *, language: str = "english", keep_newlines: bool = False) -> SentenceModel:
    """Model of a folder that holds Punkt's four tables, or of an NLTK data folder that holds one a language."""
    path = Path(folder)
    candidates = [path, path / language, path / "tokenizers" / "punkt_tab" / language, path / "punkt_tab" / language]
    for candidate in candidates:
        if (candidate / "abbrev_types.txt").is_file():
            return _read_tables(candidate, keep_newlines=keep_newlines)
    raise DataError(
        f"{path}: no Punkt tables for {language!r} (punkt_tab/{language}/abbrev_types.txt); "
        "leave the folder out to train on the input"
    )


def train_sentence_model(texts: Iterable[str], *, keep_newlines: bool = False) -> SentenceModel:
    """Model that NLTK's trainer learns from raw text; the same for the same text."""
    from nltk.tokenize.punkt import PunktTrainer

    trainer = PunktTrainer()
    for text in texts:
        trainer.train(text, finalize=False)
    trainer.finalize_training()
    found = trainer.get_params()
    return SentenceModel(
        tuple(sorted(found.abbrev_types)),
        tuple(sorted(found.collocations)),
        tuple(sorted(found.sent_starters)),
        tuple(sorted(found.ortho_context.items())),
        keep_newlines,
    )


def _read_tables(folder: Path, *, keep_newlines: bool) -> SentenceModel:
    def lines(name: str) -> list[str]:
        return (folder / name).read_text(encoding="utf-8").splitlines()

    try:
        pairs = [line.split("\t") for line in lines("collocations.tab")]
        orthography = [line.split("\t") for line in lines("ortho_context.tab")]
        return SentenceModel(
            tuple(sorted(lines("abbrev_types.txt"))),
            tuple(sorted((first, second) for first, second in pairs)),
            tuple(sorted(lines("sent_starters.txt"))),
            tuple(sorted((word, int(flags)) for word, flags in orthography)),
            keep_newlines,
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: {error}; copy Punkt's tables again") from None
