"""Samples of a run as text for people: where each comes from, and what the model read."""

from collections.abc import Iterator

from data_indexing.tokenizer import TextTokenizer
from megatron_poro.data.batches import TrainingData
from megatron_poro.data.documents import documents_of


def render_samples(data: TrainingData, samples: range, tokenizer: TextTokenizer | None) -> Iterator[str]:
    """Each sample's origin and its text, or its token ids where there is no tokenizer."""
    for number in samples:
        (origin,) = documents_of(data, range(number, number + 1))
        documents = f"documents {origin.documents.start}-{origin.documents.stop - 1}"
        yield f"=== sample {number}: {origin.source}, epoch {origin.epoch}, sequence {origin.sequence}, {documents} ===\n"
        ids = data.samples(range(number, number + 1))[0].tolist()
        yield (" ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids)) + "\n"
