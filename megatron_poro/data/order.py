"""Which sequence of which source sample n of a run is: a pure function of the data section, the sources' content and n.

The mix decides the source (`blend.py`): the sources' weights from sample 0, a stage's weights from its sample on. A
source's samples are counted through all stages; its i-th sample is position i modulo its number of sequences in epoch
i divided by it, and the epoch's keyed shuffle (`permutation.py`) turns the position into a sequence. So an epoch
shows every sequence exactly once, a stage changes nothing before it, and a resumed run needs one integer.

In a run with s mixes each source is within 2 s samples of the sum of its shares at every n (`blend.py` proves 2 for
one mix).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_poro.config.data_rules import check_data
from megatron_poro.config.schema import DataConfig
from megatron_poro.data.blend import Blend, build_blend
from megatron_poro.data.permutation import Integers, build_permutation

ORDER_VERSION = 1
"""Part of the resume contract: to be raised by any change that gives some run other samples."""
_POSITIONS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Mix:
    """A blend from `first_sample` on; `counts_before` is what each source gave until then."""

    first_sample: int
    counts_before: tuple[int, ...]
    blend: Blend

    def counts_at(self, num_samples: int) -> list[int]:
        """Samples of each source among the run's first `num_samples`, which reach into this mix."""
        within = self.blend.counts_at(num_samples - self.first_sample)
        return [before + count for before, count in zip(self.counts_before, within, strict=True)]


@dataclass(frozen=True)
class Located:
    """Where consecutive samples lie: source, epoch of that source, sequence of that source. Each [samples]."""

    sources: Integers
    epochs: Integers
    sequences: Integers


@dataclass(frozen=True)
class SampleOrder:
    """The order of a run. `num_sequences` and `fingerprints` are those of the sources, in the order of `names`."""

    seed: int
    sequence_length: int
    names: tuple[str, ...]
    num_sequences: tuple[int, ...]
    fingerprints: tuple[str, ...]
    mixes: tuple[Mix, ...]

    def counts_at(self, num_samples: int) -> list[int]:
        """How many of the run's first `num_samples` samples come from each source, exact."""
        mix = next(mix for mix in reversed(self.mixes) if mix.first_sample <= num_samples)
        return mix.counts_at(num_samples)

    def locate(self, first: int, count: int) -> Located:
        """Where samples `first` to `first + count - 1` of the run lie."""
        if first < 0 or count < 0:
            raise ValueError(f"no such samples: {count} from {first} on")
        sources, numbers = self._pick(first, count)
        epochs, positions = np.divmod(numbers, np.array(self.num_sequences, np.int64)[sources])
        sequences = np.empty_like(positions)
        for source in np.flatnonzero(np.bincount(sources)).tolist():
            own_epochs = epochs[sources == source]
            for epoch in range(int(own_epochs[0]), int(own_epochs[-1]) + 1):  # samples of a source are in order
                here = (sources == source) & (epochs == epoch)
                sequences[here] = self._shuffle(source, epoch, positions[here])
        return Located(sources, epochs, sequences)

    def sources_of(self, first: int, count: int) -> Integers:
        """The source [count] of samples `first` to `first + count - 1`."""
        return self._pick(first, count)[0]

    def shown(self, source: int, num_samples: int) -> NDArray[np.bool_]:
        """Which sequences [num_sequences] of a source its first `num_samples` samples show; 1 byte a sequence."""
        size = self.num_sequences[source]
        if num_samples >= size:
            return np.ones(size, np.bool_)
        shown = np.zeros(size, np.bool_)
        for first in range(0, num_samples, _POSITIONS_AT_ONCE):
            positions = np.arange(first, min(first + _POSITIONS_AT_ONCE, num_samples))
            shown[self._shuffle(source, 0, positions)] = True
        return shown

    def _pick(self, first: int, count: int) -> tuple[Integers, Integers]:
        """The sources of the samples, and each sample's number among all samples of its source. Two [count]."""
        sources, numbers = np.empty(count, np.int64), np.empty(count, np.int64)
        end = first + count
        for mix in reversed(self.mixes):
            start = max(first, mix.first_sample)
            if start < end:
                chosen, within = mix.blend.picks(start - mix.first_sample, end - start)
                sources[start - first : end - first] = chosen
                numbers[start - first : end - first] = within + np.array(mix.counts_before, np.int64)[chosen]
                end = start
        return sources, numbers

    def _shuffle(self, source: int, epoch: int, positions: Integers) -> Integers:
        size, fingerprint = self.num_sequences[source], self.fingerprints[source]
        return build_permutation(size, seed=self.seed, fingerprint=fingerprint, epoch=epoch).take(positions)


def build_order(config: DataConfig, num_sequences: Sequence[int], fingerprints: Sequence[str]) -> SampleOrder:
    """The order of the run that `config` describes over sources of these sizes, in sequences, and contents.

    Raises ConfigError when the data section contradicts itself.
    """
    check_data(config)
    names = tuple(source.name for source in config.sources)
    return SampleOrder(
        seed=config.seed,
        sequence_length=config.sequence_length,
        names=names,
        num_sequences=tuple(num_sequences),
        fingerprints=tuple(fingerprints),
        mixes=_build_mixes(config, names),
    )


def _build_mixes(config: DataConfig, names: Sequence[str]) -> tuple[Mix, ...]:
    mixes = [Mix(0, (0,) * len(names), build_blend([source.weight for source in config.sources]))]
    for stage in config.stages:
        first_sample = stage.from_tokens // config.sequence_length
        counts = tuple(mixes[-1].counts_at(first_sample))
        mixes.append(Mix(first_sample, counts, build_blend([stage.weights.get(name, 0) for name in names])))
    return tuple(mixes)
