"""The token arrays that training and validation read, by sample number."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from megatron_poro.config.data_rules import check_data
from megatron_poro.config.schema import DataConfig
from megatron_poro.data.order import ORDER_VERSION, Located, build_order
from megatron_poro.data.permutation import Integers
from megatron_poro.data.sources import Sequences, open_held_out, open_source


@dataclass(frozen=True)
class HeldOutSet:
    """Sequences that training never sees, in the order of the file."""

    name: str
    sequences: Sequences

    @property
    def num_samples(self) -> int:
        """Samples in the set."""
        return self.sequences.num_sequences

    def samples(self, numbers: range) -> Integers:
        """Tokens [len(numbers), sequence_length + 1] of consecutive samples."""
        first, count = _span(numbers)
        rows = ((self.sequences, sequence) for sequence in range(first, first + count))
        return _read_rows(rows, count, self.sequences.sequence_length)


class TrainingData:
    """Everything a run reads, opened. A sample depends on its number alone, so any process may ask for any.

    `order` answers where a sample lies; `validation` maps a held-out set's name to the set. Raises ConfigError when
    the data section contradicts itself or its files, DataError when a file is missing or damaged.
    """

    def __init__(self, config: DataConfig) -> None:
        """Opens every source and held-out set."""
        check_data(config)
        self.config = config
        self.sources = tuple(open_source(config, n) for n in range(len(config.sources)))
        held_out = [open_held_out(config, n, self.sources) for n in range(len(config.validation))]
        names = [held.name for held in config.validation]
        self.validation = {name: HeldOutSet(name, part) for name, part in zip(names, held_out, strict=True)}
        sizes = [source.training.num_sequences for source in self.sources]
        self.order = build_order(config, sizes, [source.fingerprint for source in self.sources])

    def samples(self, numbers: range) -> Integers:
        """Tokens [len(numbers), sequence_length + 1] of consecutive samples of the run; one read each."""
        where = self._locate(numbers)
        rows = (
            (self.sources[source].training, sequence)
            for source, sequence in zip(where.sources.tolist(), where.sequences.tolist(), strict=True)
        )
        return _read_rows(rows, len(numbers), self.config.sequence_length)

    def sources_of(self, numbers: range) -> Integers:
        """The source [len(numbers)] of consecutive samples, as a position in `config.sources`."""
        return self._locate(numbers).sources

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides what sample n is, for JSON: equal fingerprints mean equal samples."""
        sources = [
            {
                "name": source.config.name,
                "weight": source.config.weight,
                "content": source.fingerprint,
                "sequences": source.training.num_sequences,
                "held_out_sequences": source.num_held_out,
            }
            for source in self.sources
        ]
        return {
            "order_version": ORDER_VERSION,
            "seed": self.config.seed,
            "sequence_length": self.config.sequence_length,
            "sources": sources,
            "stages": [asdict(stage) for stage in self.config.stages],
        }

    def close(self) -> None:
        """Closes every file."""
        for source in self.sources:
            source.training.reader.close()
        for held in self.validation.values():
            held.sequences.reader.close()

    def _locate(self, numbers: range) -> Located:
        return self.order.locate(*_span(numbers))


def _span(numbers: range) -> tuple[int, int]:
    if numbers.step != 1:
        raise ValueError(f"sample numbers must be consecutive: {numbers}")
    return numbers.start, len(numbers)


def _read_rows(rows: Iterable[tuple[Sequences, int]], count: int, sequence_length: int) -> Integers:
    tokens = np.empty((count, sequence_length + 1), np.int64)
    for row, (sequences, sequence) in enumerate(rows):
        tokens[row] = sequences.read(sequence)
    return tokens
