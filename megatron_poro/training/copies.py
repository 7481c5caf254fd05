"""Which ranks hold weights that differ from their copies, from every rank's hashes. Pure functions, no torch."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product

from megatron_poro.topology import Coordinates, Layout, rank_at

Hashes = Sequence[tuple[int, int]]
"""Of each rank: the hash of all its weights, and of those that its tensor group holds in common."""


def find_differing(hashes: Hashes, layout: Layout) -> list[tuple[list[int], list[int]]]:
    """The ranks that differ from the majority of their copies, and that majority; without a majority all of them differ."""
    found = [_minority(group, [hashes[rank][0] for rank in group]) for group in _data_groups(layout)]
    found += [_minority(group, [hashes[rank][1] for rank in group]) for group in _tensor_groups(layout)]
    return [(differing, others) for differing, others in found if differing]


def describe_differing(found: Sequence[tuple[list[int], list[int]]], names: Sequence[str], step: int) -> str:
    """The error's text: which ranks, on which hosts and devices, and the way out."""
    lines = [f"step {step}: weights that must be equal bit for bit are not; nothing was saved since the comparison before"]
    for differing, others in found:
        named = ", ".join(names[rank] for rank in differing)
        rest = f"the copies on ranks {_few(others)} agree" if others else "there is no majority to tell which of them is wrong"
        lines.append(f"{named}: {'differs' if len(differing) == 1 else 'differ'}; {rest}")
    lines.append(
        "the same command goes on from the newest checkpoint; leave the node out first if it is named again (sbatch --exclude), "
        "and test its memory"
    )
    return "\n".join(lines)


def _minority(group: Sequence[int], hashes: Sequence[int]) -> tuple[list[int], list[int]]:
    (common, count), *rest = [*Counter(hashes).most_common(2), (0, 0)]
    if count == len(group):
        return [], list(group)
    if rest[0][1] == count:
        return list(group), []
    pairs = list(zip(group, hashes, strict=True))
    return [rank for rank, value in pairs if value != common], [rank for rank, value in pairs if value == common]


def _data_groups(layout: Layout) -> Iterator[list[int]]:
    for stage in range(layout.pipeline):
        for tensor in range(layout.tensor):
            yield [rank_at(Coordinates(data, stage, tensor, context), layout) for data, context in _copies(layout)]


def _tensor_groups(layout: Layout) -> Iterator[list[int]]:
    for stage in range(layout.pipeline):
        for data, context in _copies(layout):
            yield [rank_at(Coordinates(data, stage, tensor, context), layout) for tensor in range(layout.tensor)]


def _copies(layout: Layout) -> Iterator[tuple[int, int]]:
    """The data and context ranks of every copy of the model."""
    yield from product(range(layout.data), range(layout.context))


def _few(ranks: Sequence[int], most: int = 8) -> str:
    return ", ".join(map(str, ranks[:most])) + (" ..." if len(ranks) > most else "")
