"""The token arrays that training and validation read, by sample number.

A sample is one read, straight into its row. Where samples lie is computed for whole windows of their numbers, and the
last windows are kept, so the share of a sample is a fraction of a microsecond and any order of asking is right.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_indexing.reader import RowPlaces
from megatron_poro.config.data_rules import check_data
from megatron_poro.config.schema import DataConfig
from megatron_poro.data.order import ORDER_VERSION, build_order
from megatron_poro.data.permutation import Integers
from megatron_poro.data.sources import Sequences, open_held_out, open_source

Rows = NDArray[np.integer[Any]]
_WINDOW_SAMPLES = 16_384


@dataclass(frozen=True)
class HeldOutSet:
    """Sequences that training never sees, in the order of the file."""

    name: str
    sequences: Sequences

    @property
    def num_samples(self) -> int:
        """Samples in the set."""
        return self.sequences.num_sequences

    def samples(self, numbers: range) -> Rows:
        """Tokens [len(numbers), sequence_length + 1] of consecutive samples, in the type of the file."""
        first, count = _span(numbers)
        if not 0 <= first <= first + count <= self.num_samples:
            raise IndexError(f"{self.name}: no samples {numbers} among {self.num_samples}")
        reader, length = self.sequences.reader, self.sequences.sequence_length
        rows = np.empty((count, length + 1), reader.dtype)
        starts = (self.sequences.first + np.arange(first, first + count)) * length
        RowPlaces([reader] * count, starts, reader.dtype).read(0, rows)
        return rows


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
        self._dtype = np.result_type(*(source.training.reader.dtype for source in self.sources))
        self._window: Callable[[int], RowPlaces] = lru_cache(maxsize=2)(self._locate_window)

    def samples(self, numbers: range) -> Rows:
        """Tokens [len(numbers), sequence_length + 1] of consecutive samples of the run; one read each.

        Their type is that of the sources, the widest where they differ.
        """
        first, count = _span(numbers)
        rows = np.empty((count, self.config.sequence_length + 1), self._dtype)
        done = 0
        while done < count:
            window, offset = divmod(first + done, _WINDOW_SAMPLES)
            end = done + _WINDOW_SAMPLES - offset
            self._window(window).read(offset, rows[done:end])
            done = end
        return rows

    def sources_of(self, numbers: range) -> Integers:
        """The source [len(numbers)] of consecutive samples, as a position in `config.sources`."""
        return self.order.sources_of(*_span(numbers))

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

    def _locate_window(self, window: int) -> RowPlaces:
        where = self.order.locate(window * _WINDOW_SAMPLES, _WINDOW_SAMPLES)
        readers = [source.training.reader for source in self.sources]
        starts = where.sequences * self.config.sequence_length
        return RowPlaces([readers[source] for source in where.sources.tolist()], starts, self._dtype)


def _span(numbers: range) -> tuple[int, int]:
    if numbers.step != 1:
        raise ValueError(f"sample numbers must be consecutive: {numbers}")
    return numbers.start, len(numbers)
