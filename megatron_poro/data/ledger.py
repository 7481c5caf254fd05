"""What a run has read, or will have read, from each source at any sample number: exact and offline."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from megatron_poro.data.order import SampleOrder
from megatron_poro.data.table import render_table
from megatron_poro.data.windows import Windows


@dataclass(frozen=True)
class SourceEntry:
    """One source's part: samples and tokens read, share of all samples, passes over its `num_sequences`.

    `documents` is how many documents it has read any token of, None where nobody counted them.
    """

    name: str
    samples: int
    tokens: int
    share: Fraction
    epochs: Fraction
    num_sequences: int
    documents: int | None = None


@dataclass(frozen=True)
class Ledger:
    """What a run has read: `samples` of them."""

    samples: int
    tokens: int
    sources: tuple[SourceEntry, ...]

    def as_dict(self) -> dict[str, Any]:
        """The ledger for JSON; share and epochs become floats, documents stand there when they were counted."""
        return {"samples": self.samples, "tokens": self.tokens, "sources": [_to_dict(entry) for entry in self.sources]}

    def as_table(self) -> str:
        """The ledger as a plain text table, one line per source and one for the sum."""
        headings = ["source", "samples", "tokens", "share", "epochs", "sequences"]
        total = ["total", f"{self.samples:,}", f"{self.tokens:,}", "", "", ""]
        counts = [entry.documents for entry in self.sources if entry.documents is not None]
        if counts:
            headings.append("documents")
            total.append(f"{sum(counts):,}")
        return render_table([headings, *(_to_cells(entry) for entry in self.sources), total])


def ledger_at(
    order: SampleOrder,
    position: int,
    documents: Sequence[int] | None = None,
    *,
    windows: Windows = Windows(),  # noqa: B008
) -> Ledger:
    """The ledger of a run that stands at sample number `position`: what lies before it and in none of the `windows`.

    With the `documents` of each source if they were counted.
    """
    num_samples = position - windows.num_before(position)
    columns = zip(
        order.names,
        _counts(order, position, windows),
        order.num_sequences,
        documents if documents is not None else [None] * len(order.names),
        strict=True,
    )
    entries = [
        SourceEntry(
            name=name,
            samples=count,
            tokens=count * order.sequence_length,
            share=Fraction(count, max(num_samples, 1)),
            epochs=Fraction(count, size),
            num_sequences=size,
            documents=touched,
        )
        for name, count, size, touched in columns
    ]
    return Ledger(num_samples, num_samples * order.sequence_length, tuple(entries))


def _counts(order: SampleOrder, position: int, windows: Windows) -> list[int]:
    counts = order.counts_at(position)
    for span in windows.spans:
        first, stop = (order.counts_at(min(bound, position)) for bound in span)
        counts = [count - (after - before) for count, before, after in zip(counts, first, stop, strict=True)]
    return counts


def _to_dict(entry: SourceEntry) -> dict[str, Any]:
    values = {
        "name": entry.name,
        "samples": entry.samples,
        "tokens": entry.tokens,
        "share": float(entry.share),
        "epochs": float(entry.epochs),
        "sequences": entry.num_sequences,
    }
    return values if entry.documents is None else {**values, "documents": entry.documents}


def _to_cells(entry: SourceEntry) -> list[str]:
    share, epochs = f"{float(entry.share):.2%}", f"{float(entry.epochs):.3f}"
    cells = [entry.name, f"{entry.samples:,}", f"{entry.tokens:,}", share, epochs, f"{entry.num_sequences:,}"]
    return cells if entry.documents is None else [*cells, f"{entry.documents:,}"]
