"""What a run has read, or will have read, from each source at any sample number: exact and offline."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from megatron_poro.data.order import SampleOrder

_HEADINGS = ("source", "samples", "tokens", "share", "epochs", "sequences")


@dataclass(frozen=True)
class SourceEntry:
    """One source's part: samples and tokens read, share of all samples, passes over its `num_sequences`."""

    name: str
    samples: int
    tokens: int
    share: Fraction
    epochs: Fraction
    num_sequences: int


@dataclass(frozen=True)
class Ledger:
    """The run's reading up to and excluding sample number `samples`."""

    samples: int
    tokens: int
    sources: tuple[SourceEntry, ...]

    def as_dict(self) -> dict[str, Any]:
        """The ledger for JSON; share and epochs become floats."""
        return {"samples": self.samples, "tokens": self.tokens, "sources": [_to_dict(entry) for entry in self.sources]}

    def as_table(self) -> str:
        """The ledger as a plain text table, one line per source and one for the sum."""
        rows = [_to_cells(entry) for entry in self.sources]
        total = ("total", f"{self.samples:,}", f"{self.tokens:,}", "", "", "")
        lines = [_HEADINGS, *rows, total]
        widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
        return "\n".join(_to_line(line, widths) for line in lines)


def ledger_at(order: SampleOrder, num_samples: int) -> Ledger:
    """The ledger of the run's first `num_samples` samples."""
    entries = [
        SourceEntry(
            name=name,
            samples=count,
            tokens=count * order.sequence_length,
            share=Fraction(count, max(num_samples, 1)),
            epochs=Fraction(count, size),
            num_sequences=size,
        )
        for name, count, size in zip(order.names, order.counts_at(num_samples), order.num_sequences, strict=True)
    ]
    return Ledger(num_samples, num_samples * order.sequence_length, tuple(entries))


def _to_dict(entry: SourceEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "samples": entry.samples,
        "tokens": entry.tokens,
        "share": float(entry.share),
        "epochs": float(entry.epochs),
        "sequences": entry.num_sequences,
    }


def _to_cells(entry: SourceEntry) -> tuple[str, ...]:
    share, epochs = f"{float(entry.share):.2%}", f"{float(entry.epochs):.3f}"
    return entry.name, f"{entry.samples:,}", f"{entry.tokens:,}", share, epochs, f"{entry.num_sequences:,}"


def _to_line(cells: tuple[str, ...], widths: list[int]) -> str:
    name, *numbers = cells
    aligned = [name.ljust(widths[0]), *(number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True))]
    return "  ".join(aligned).rstrip()
