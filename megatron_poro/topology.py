"""Which rank does what: integers only, the one place where ranks are computed.

Ranks are numbered tensor first, then context, then data, then pipeline, as megatron-core numbers them: the ranks of a tensor group
are neighbours, so they share a node.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_poro.errors import LayoutError


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel axes; `virtual_stages` is the number of model chunks that each pipeline stage holds."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    virtual_stages: int = 1
    context: int = 1

    @property
    def model_size(self) -> int:
        """Processes that hold one copy of the model."""
        return self.tensor * self.pipeline

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.model_size * self.context * self.data

    def __str__(self) -> str:
        context = f" x CP{self.context}" if self.context > 1 else ""
        virtual = f" with {self.virtual_stages} virtual stages" if self.virtual_stages > 1 else ""
        return f"TP{self.tensor} x PP{self.pipeline} x DP{self.data}{context}{virtual}"


@dataclass(frozen=True)
class Coordinates:
    """Where a process stands: its rank on each axis."""

    data: int
    pipeline: int
    tensor: int
    context: int = 0


def build_layout(tensor: int, pipeline: int, virtual_stages: int, *, world_size: int, context: int = 1) -> Layout:
    """The layout on `world_size` processes; the data axis takes what tensor, pipeline and context leave.

    Raises LayoutError when tensor x pipeline x context does not divide the world size.
    """
    sizes = {"tensor": tensor, "pipeline": pipeline} | ({"context": context} if context > 1 else {})
    taken = tensor * pipeline * context
    if world_size % taken:
        product = " x ".join(f"parallel.{axis} ({size})" for axis, size in sizes.items())
        keys = " / ".join(f"parallel.{axis}" for axis in sizes)
        raise LayoutError(
            f"{product} = {taken} does not divide world size {world_size}; start a multiple of {taken} processes or change {keys}"
        )
    return Layout(tensor, pipeline, world_size // taken, virtual_stages, context)


def locate_rank(rank: int, layout: Layout) -> Coordinates:
    """The axes' ranks of process `rank`; the inverse of `rank_at`."""
    return Coordinates(
        tensor=rank % layout.tensor,
        context=rank // layout.tensor % layout.context,
        data=rank // (layout.tensor * layout.context) % layout.data,
        pipeline=rank // (layout.tensor * layout.context * layout.data),
    )


def rank_at(where: Coordinates, layout: Layout) -> int:
    """The process at the given axes' ranks; the inverse of `locate_rank`."""
    return where.tensor + layout.tensor * (where.context + layout.context * (where.data + layout.data * where.pipeline))


def sequence_chunks(rank: int, size: int) -> tuple[int, int]:
    """The two of 2 x `size` chunks of every sequence that context rank `rank` of `size` holds.

    An early and a late one: with causal attention every rank then has the same amount of work.
    """
    return rank, 2 * size - 1 - rank


def layers_of(stage: int, chunk: int, num_layers: int, layout: Layout) -> range:
    """The layers that chunk `chunk` of pipeline stage `stage` holds: chunks go round the stages, as 1F1B interleaves them.

    Raises LayoutError when the layers do not divide evenly.
    """
    num_chunks = layout.pipeline * layout.virtual_stages
    if num_layers % num_chunks:
        raise LayoutError(
            f"model.num_layers ({num_layers}) does not divide into parallel.pipeline ({layout.pipeline}) x "
            f"parallel.virtual_stages ({layout.virtual_stages}) = {num_chunks} chunks; choose a divisor of {num_layers}"
        )
    size = num_layers // num_chunks
    first = (chunk * layout.pipeline + stage) * size
    return range(first, first + size)


def padded_vocab_size(vocab_size: int, tensor: int) -> int:
    """The embedding's rows at `tensor`-way parallelism: the next multiple of it. The extra rows never leave the engine."""
    return -(-vocab_size // tensor) * tensor


def microbatch_samples(first_sample: int, microbatch: int, size: int, where: Sequence[int]) -> range:
    """Sample numbers of one microbatch of a step that starts at `first_sample`; `where` is (data rank, data size).

    Microbatch m of all data ranks together is one run of sample numbers, so the union over ranks does not depend on the layout.
    """
    rank, num_ranks = where
    first = first_sample + (microbatch * num_ranks + rank) * size
    return range(first, first + size)
