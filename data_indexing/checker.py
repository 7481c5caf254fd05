"""The reference's word on a sample of what the fast encoder gave. Imports little: a process of its own runs it."""

from dataclasses import dataclass

from data_indexing.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Sample:
    """Texts, and the ids that the encoder in use gives them."""

    texts: list[str]
    ids: list[list[int]]


@dataclass
class Checker:
    """The first text of a sample to which the reference gives other ids, or None."""

    tokenizer: TextTokenizer

    def prepare(self) -> None:
        """Build the tokenizer, which takes half a second."""
        self.tokenizer.encode_batch([""])

    def __call__(self, sample: Sample) -> str | None:
        """See there."""
        for text, ids, expected in zip(sample.texts, sample.ids, self.tokenizer.encode_batch(sample.texts), strict=True):
            if ids != expected:
                return text
        return None
