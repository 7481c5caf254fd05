"""Which rank does what: integers only, the one place where ranks are computed.

Ranks are numbered tensor first, then data, then pipeline, as megatron-core numbers them: the ranks of a tensor group are
neighbours, so they share a node.
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

    @property
    def model_size(self) -> int:
        """Processes that hold one copy of the model."""
        return self.tensor * self.pipeline

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.model_size * self.data

    def __str__(self) -> str:
        virtual = f" with {self.virtual_stages} virtual stages" if self.virtual_stages > 1 else ""
        return f"TP{self.tensor} x PP{self.pipeline} x DP{self.data}{virtual}"


@dataclass(frozen=True)
class Coordinates:
    """Where a process stands: its rank on each axis."""

    data: int
    pipeline: int
    tensor: int


def build_layout(tensor: int, pipeline: int, virtual_stages: int, *, world_size: int) -> Layout:
    """The layout on `world_size` processes; the data axis takes what tensor and pipeline leave.

    Raises LayoutError when tensor x pipeline does not divide the world size.
    """
    model_size = tensor * pipeline
    if world_size % model_size:
        raise LayoutError(
            f"parallel.tensor ({tensor}) x parallel.pipeline ({pipeline}) = {model_size} does not divide world size "
            f"{world_size}; start a multiple of {model_size} processes or change parallel.tensor / parallel.pipeline"
        )
    return Layout(tensor, pipeline, world_size // model_size, virtual_stages)


def locate_rank(rank: int, layout: Layout) -> Coordinates:
    """The axes' ranks of process `rank`; the inverse of `rank_at`."""
    return Coordinates(
        tensor=rank % layout.tensor,
        data=rank // layout.tensor % layout.data,
        pipeline=rank // (layout.tensor * layout.data),
    )


def rank_at(where: Coordinates, layout: Layout) -> int:
    """The process at the given axes' ranks; the inverse of `locate_rank`."""
    return where.tensor + layout.tensor * (where.data + layout.data * where.pipeline)


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
