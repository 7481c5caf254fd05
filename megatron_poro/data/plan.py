"""What a whole run makes of its sources: how often each is read, what of it is never read, and what to think of that."""

from dataclasses import dataclass
from typing import Any

from megatron_poro.data.batches import TrainingData
from megatron_poro.data.ledger import SourceEntry, ledger_at
from megatron_poro.data.table import render_table

EPOCH_LIMIT = 4
"""Up to 4 passes over the same text are worth nearly as much as fresh text, more are worth less and less."""
_EPOCH_LIMIT_SOURCE = "Muennighoff et al. 2023, arXiv:2305.16264"


@dataclass(frozen=True)
class SourcePlan:
    """One source in a run: `tokens` of the pair = read at least once + `held_out_tokens` + `unused_tokens`."""

    read: SourceEntry
    tokens: int
    held_out_tokens: int
    unused_tokens: int


@dataclass(frozen=True)
class Plan:
    """A run's reading against what its sources hold."""

    samples: int
    tokens: int
    sources: tuple[SourcePlan, ...]

    @property
    def warnings(self) -> list[str]:
        """A line for each source that is repeated beyond EPOCH_LIMIT."""
        reason = f"beyond {EPOCH_LIMIT} repeated text is worth less and less ({_EPOCH_LIMIT_SOURCE})"
        return [
            f"{source.read.name}: {float(source.read.epochs):.3f} epochs; {reason}: lower its weight or add text"
            for source in self.sources
            if source.read.epochs > EPOCH_LIMIT
        ]

    @property
    def notes(self) -> list[str]:
        """A line for each source that is repeated within EPOCH_LIMIT."""
        return [
            f"{source.read.name}: {float(source.read.epochs):.3f} epochs; some of its text is read more than once"
            for source in self.sources
            if 1 < source.read.epochs <= EPOCH_LIMIT
        ]

    def as_dict(self) -> dict[str, Any]:
        """The plan for JSON."""
        sources = [_to_dict(source) for source in self.sources]
        return {
            "samples": self.samples,
            "tokens": self.tokens,
            "sources": sources,
            "warnings": self.warnings,
            "notes": self.notes,
        }

    def as_table(self) -> str:
        """The plan as a plain text table, then its warnings and notes."""
        headings = ["source", "tokens", "share", "epochs", "in files", "held out", "unused"]
        columns = [(source.tokens, source.held_out_tokens, source.unused_tokens) for source in self.sources]
        sums = [f"{sum(column):,}" for column in zip(*columns, strict=True)]
        total = ["total", f"{self.tokens:,}", "", "", *sums]
        table = render_table([headings, *(_to_cells(source) for source in self.sources), total])
        warnings = [f"warning: {line}" for line in self.warnings]
        return "\n".join([table, *warnings, *(f"note: {line}" for line in self.notes)])


def build_plan(data: TrainingData, num_samples: int) -> Plan:
    """The plan of a run of `num_samples` samples."""
    ledger = ledger_at(data.order, num_samples)
    sources = []
    for source, entry in zip(data.sources, ledger.sources, strict=True):
        tokens = source.training.reader.num_tokens
        held_out = source.num_held_out * data.config.sequence_length
        read_once = min(entry.samples, entry.num_sequences) * data.config.sequence_length
        sources.append(SourcePlan(entry, tokens, held_out, tokens - held_out - read_once))
    return Plan(ledger.samples, ledger.tokens, tuple(sources))


def _to_dict(source: SourcePlan) -> dict[str, Any]:
    return {
        "name": source.read.name,
        "tokens": source.read.tokens,
        "share": float(source.read.share),
        "epochs": float(source.read.epochs),
        "tokens_in_files": source.tokens,
        "held_out_tokens": source.held_out_tokens,
        "unused_tokens": source.unused_tokens,
    }


def _to_cells(source: SourcePlan) -> list[str]:
    share, epochs = f"{float(source.read.share):.2%}", f"{float(source.read.epochs):.3f}"
    files = (source.tokens, source.held_out_tokens, source.unused_tokens)
    return [source.read.name, f"{source.read.tokens:,}", share, epochs, *(f"{tokens:,}" for tokens in files)]
