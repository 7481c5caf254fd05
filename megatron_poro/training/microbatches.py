"""Rows of token ids as the microbatches that one rank feeds through the pipeline schedule."""

from collections.abc import Sequence

import numpy as np

from megatron_poro.config import RunConfig
from megatron_poro.data import HeldOutSet, Rows, TrainingData
from megatron_poro.engine.step import Microbatch
from megatron_poro.errors import ConfigError
from megatron_poro.topology import Layout, microbatch_samples


def training_microbatches(
    config: RunConfig, data: TrainingData, layout: Layout, *, runs: Sequence[range], data_rank: int
) -> list[Microbatch]:
    """This rank's part of the step that reads the samples of `runs`: arrays [micro_batch, seq + 1]."""
    size = config.training.micro_batch_size
    num_microbatches = sum(map(len, runs)) // (size * layout.data)
    spans = [microbatch_samples(0, n, size, (data_rank, layout.data)) for n in range(num_microbatches)]
    sources = [source for run in runs for source in data.sources_of(run).tolist()]
    return [Microbatch(_read(config, data, runs, span), size, sources[span.start : span.stop]) for span in spans]


def _read(config: RunConfig, data: TrainingData, runs: Sequence[range], span: range) -> Rows:
    """The rows of the step's samples number `span`, counted from the step's first."""
    parts, passed = [], 0
    for run in runs:
        part = run[max(span.start - passed, 0) : max(span.stop - passed, 0)]
        if part:
            parts.append(_checked(data.samples(part), config.model.vocab_size, f"samples {part.start}-{part.stop - 1}"))
        passed += len(run)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def validation_microbatches(config: RunConfig, held_out: HeldOutSet, layout: Layout, *, data_rank: int) -> list[Microbatch]:
    """This rank's part of a held-out set: arrays [micro_batch, seq + 1] and how many of the rows count.

    Every rank gets the same number of microbatches, a multiple of the stages; rows are repeated to fill them up and do not count.
    """
    size = config.training.micro_batch_size
    wanted = config.training.validation_samples or held_out.num_samples
    num_samples = min(wanted, held_out.num_samples)
    per_round = size * layout.data * layout.pipeline
    num_microbatches = -(-num_samples // per_round) * layout.pipeline
    microbatches = []
    for n in range(num_microbatches):
        span = microbatch_samples(0, n, size, (data_rank, layout.data))
        real = range(min(span.start, num_samples), min(span.stop, num_samples))
        filler = held_out.samples(range(1)).repeat(size - len(real), axis=0)  # [rows short of a micro-batch, seq + 1]
        rows = np.concatenate([held_out.samples(real), filler]) if real else filler
        microbatches.append(Microbatch(_checked(rows, config.model.vocab_size, f"validation set {held_out.name!r}"), len(real)))
    return microbatches


def _checked(rows: Rows, vocab_size: int, where: str) -> Rows:
    """Refuse ids beyond the vocabulary: a sharded embedding would read them as zeros in silence."""
    largest = int(rows.max())
    if largest >= vocab_size:
        raise ConfigError(
            [
                f"data: {where} have token id {largest}, beyond model.vocab_size ({vocab_size}); the files were made with another "
                "tokenizer (`poro data verify` tells which)"
            ]
        )
    return rows
