"""Megatron-LM's `--ckpt-format torch`: `mp_rank_TT[_PPP]/model_optim_rng.pt`, one file a rank of any layout.

A rank's tensors are boxes of the whole ones, so a checkpoint is read as if it were one; optimizer state is never opened. Both
spellings of the norms are read: Transformer Engine keeps them with the matrix that follows, local layers apart.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_indexing.progress import Advance
from megatron_poro.config.schema import ModelConfig
from megatron_poro.conversion.arrays import Box, Region, StoredArray, as_bytes, flat_bytes
from megatron_poro.conversion.files import OutFile
from megatron_poro.conversion.huggingface import same_numbers
from megatron_poro.conversion.megatron import check_array
from megatron_poro.conversion.megatron_args import build_args, padded_vocab_size
from megatron_poro.conversion.safe_pickle import fields
from megatron_poro.conversion.table import OUTPUT_LAYER, TABLE, Piece, Row, pieces
from megatron_poro.conversion.torch_archive import PendingTensor, read_archive, write_archive
from megatron_poro.conversion.weights import MegatronWeights, Weights, block_rows, read_merged_into
from megatron_poro.conversion.work import Tell, run_jobs
from megatron_poro.errors import ConversionError, LayoutError
from megatron_poro.topology import Layout, layers_of

RANK_FILE = "model_optim_rng.pt"
_RANK_FOLDER = re.compile(r"mp_rank_(\d{2,6})(?:_(\d{3,6}))?")
_LAYER = re.compile(r"decoder\.layers\.(\d{1,6})\.(.+)")
_CHUNK = re.compile(r"model(\d{0,6})")
_LOCAL_NAMES = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
"""Names of the norms of layers without Transformer Engine."""
_EMBEDDING = TABLE[0].megatron
_ROWS = {row.megatron: row for row in TABLE}


class Rank(NamedTuple):
    """Where a rank stands on the two axes that share the weights."""

    pipeline: int
    tensor: int


@dataclass(frozen=True)
class TorchCheckpoint:
    """The rank files of one iteration, opened: their arguments, and the tensors of each model chunk, unread."""

    directory: Path
    args: Any
    layout: Layout
    chunks: Mapping[tuple[Rank, int], Mapping[str, StoredArray]]


def is_torch(directory: Path) -> bool:
    """Whether a directory is an iteration in this format, going by its folders."""
    return directory.is_dir() and any(_RANK_FOLDER.fullmatch(path.name) for path in directory.iterdir())


def open_torch(directory: Path) -> TorchCheckpoint:
    """Open all rank files. Raises ConversionError when one is missing, damaged, hostile, or not of a GPT of megatron-core."""
    paths = _list_ranks(directory)
    tensor, pipeline = (max(rank[axis] for rank in paths) + 1 for axis in (1, 0))
    for rank in (Rank(p, t) for p in range(pipeline) for t in range(tensor)):
        if rank not in paths or not paths[rank].is_file():
            raise ConversionError(f"{directory} lacks {RANK_FILE} of tensor rank {rank.tensor}, pipeline rank {rank.pipeline}")
    trees = {rank: _read_rank(path) for rank, path in paths.items()}
    chunks = {(rank, n): chunk for rank, tree in trees.items() for n, chunk in enumerate(_model_chunks(paths[rank], tree))}
    virtual = len(chunks) // len(trees)
    if set(chunks) != {(rank, n) for rank in trees for n in range(virtual)}:
        raise ConversionError(f"{directory}: its ranks hold different numbers of model chunks; copy it again")
    args = trees[Rank(0, 0)].get("args")
    _check_sizes(directory, args, {"tensor": tensor, "pipeline": pipeline})
    return TorchCheckpoint(directory, args, Layout(tensor, pipeline, 1, virtual), chunks)


def whole_model(checkpoint: TorchCheckpoint, model: ModelConfig) -> MegatronWeights:
    """The rank files as one model. Raises ConversionError when they are not that model, whole, and alike where they repeat."""
    placed: dict[str, list[Box]] = {name: [] for name in _ROWS}
    dtypes: dict[str, torch.dtype] = {}
    num_rows = _padded_rows(checkpoint)
    for name, rank, layer, array in _list_tensors(checkpoint):
        row = _ROWS[name]
        if rank.tensor and not row.shared:
            continue
        if dtypes.setdefault(name, array.dtype) != array.dtype:
            raise ConversionError(f"{checkpoint.directory}: {name} is {dtypes[name]} and {array.dtype}; save it in one number type")
        placed[name] += _place(checkpoint, model, row, rank=rank, layer=layer, array=array)
    _check_copies(checkpoint, model)
    arrays = {}
    for piece in {piece.row.megatron: piece for piece in pieces(model)}.values():
        name, shape = piece.row.megatron, piece.global_shape(model)
        if name in (_EMBEDDING, OUTPUT_LAYER):
            shape = (max(num_rows, shape[0]), *shape[1:])
        if not placed[name]:
            raise ConversionError(f"{checkpoint.directory} lacks {name}; give a checkpoint that holds the whole model")
        arrays[name] = StoredArray(name, shape, dtypes[name], tuple(placed[name]))
        check_array(checkpoint.directory, arrays[name], piece, model=model)
        arrays[name].check_cover()
    return MegatronWeights(checkpoint.directory, model, arrays)


def write_torch(directory: Path, weights: Weights, layout: Layout, *, local: bool, workers: int, advance: Advance) -> None:
    """Write a file a rank into `directory`, `workers` at a time; `local` names the norms as layers without Transformer Engine do.

    Raises LayoutError when the model does not divide over the layout.
    """
    _check_layout(weights.model, layout)
    ranks = [Rank(p, t) for p in range(layout.pipeline) for t in range(layout.tensor)]
    jobs = [_RankJob(directory / _folder_of(rank, layout), weights, layout, rank, local) for rank in ranks]
    run_jobs(jobs, workers=workers, advance=advance)


def _check_sizes(directory: Path, args: Any, found: Mapping[str, int]) -> None:
    """The last ranks of an axis may be missing without a gap: the arguments tell."""
    for axis, size in found.items():
        wanted = fields(args).get(f"{axis}_model_parallel_size")
        if wanted not in (None, size):
            raise ConversionError(f"{directory} has the files of {size} {axis} ranks, its arguments say {wanted}; copy it again")


def _list_ranks(directory: Path) -> dict[Rank, Path]:
    found = {path: _RANK_FOLDER.fullmatch(path.name) for path in sorted(directory.iterdir())}
    return {Rank(int(match[2] or 0), int(match[1])): path / RANK_FILE for path, match in found.items() if match}


def _folder_of(rank: Rank, layout: Layout) -> str:
    return f"mp_rank_{rank.tensor:02d}" + (f"_{rank.pipeline:03d}" if layout.pipeline > 1 else "")


def _read_rank(path: Path) -> dict[str, Any]:
    tree = read_archive(path)
    if not isinstance(tree, dict) or not ("model" in tree or "model0" in tree):
        raise ConversionError(f"{path} holds no model; give a checkpoint that Megatron-LM wrote with --ckpt-format torch")
    return tree


def _model_chunks(path: Path, tree: Mapping[str, Any]) -> list[dict[str, StoredArray]]:
    """The tensors of each virtual stage by Megatron's names, those of a chunk's layers counted from its first."""
    names = sorted((name for name in tree if isinstance(name, str) and _CHUNK.fullmatch(name)), key=lambda name: int(name[5:] or 0))
    chunks = []
    for name in names:
        if not isinstance(tree[name], dict) or "language_model" in tree[name]:
            raise ConversionError(f"{path}: {name} is no GPT of megatron-core; older model classes are not converted")
        entries = {_standard_name(key): value for key, value in tree[name].items() if not str(key).endswith("_extra_state")}
        unknown = [key for key, value in entries.items() if not _row_name(key) or not isinstance(value, StoredArray)]
        if unknown:
            raise ConversionError(f"{path}: {name} holds {', '.join(unknown[:3])}, which no Llama has")
        chunks.append({key: replace(value, name=key) for key, value in entries.items()})
    return chunks


def _standard_name(key: object) -> str:
    """A name as Transformer Engine's layers have it, without the wrappers of data parallelism and half precision."""
    name = re.sub(r"^(module\.)+", "", str(key))
    found = _LAYER.fullmatch(name)
    return f"decoder.layers.{found[1]}.{_LOCAL_NAMES.get(found[2], found[2])}" if found else name


def _row_name(name: str) -> str:
    """The table's name of a tensor, without the number of a layer; empty when the table has none."""
    found = _LAYER.fullmatch(name)
    plain = f"decoder.layers.{found[2]}" if found else name
    return plain if plain in _ROWS and _ROWS[plain].stacked == bool(found) else ""


def _list_tensors(checkpoint: TorchCheckpoint) -> Iterator[tuple[str, Rank, int, StoredArray]]:
    """Every tensor with its table name, rank, and layer of the whole model (0 where it belongs to none).

    Layers are counted chunk after chunk as they lie, so uneven stages need no argument to tell of them.
    """
    layout, first = checkpoint.layout, 0
    for n in range(layout.virtual_stages):
        for pipeline in range(layout.pipeline):
            num_layers = 0
            for tensor in range(layout.tensor):
                rank = Rank(pipeline, tensor)
                for name, array in checkpoint.chunks[rank, n].items():
                    found = _LAYER.fullmatch(name)
                    layer = int(found[1]) if found else 0
                    num_layers = max(num_layers, layer + 1 if found else 0)
                    yield _row_name(name), rank, first + layer if found else 0, array
            first += num_layers


def _padded_rows(checkpoint: TorchCheckpoint) -> int:
    """Rows of the vocabulary over all tensor ranks."""
    first = (checkpoint.chunks[Rank(0, t), 0].get(_EMBEDDING) for t in range(checkpoint.layout.tensor))
    return sum(array.shape[0] for array in first if array is not None)


def _place(
    checkpoint: TorchCheckpoint, model: ModelConfig, row: Row, *, rank: Rank, layer: int, array: StoredArray
) -> Iterator[Box]:
    """The boxes that a rank's tensor fills of the whole one."""
    piece, ways = Piece(row, layer), checkpoint.layout.tensor
    whole = list(piece.merged_shape(model))
    if "vocab" in next(iter(row.parts.values())):
        whole[0] = _padded_rows(checkpoint)
    axis = {"rows": 0, "columns": 1}.get(row.shared)
    if axis is not None:
        whole[axis] //= ways
    if array.shape != tuple(whole) or layer >= model.num_layers or len(array.boxes) != 1:
        found = f"{array.name} of tensor rank {rank.tensor}, pipeline rank {rank.pipeline} (layer {layer})"
        raise ConversionError(
            f"{checkpoint.directory}: {found} is {list(array.shape)}; at {ways}-way tensor parallelism this model, of "
            f"{model.num_layers} layers, needs {whole}"
        )
    box, lead = array.boxes[0], (layer,) if row.stacked else ()
    row_bytes = array.dtype.itemsize * (whole[1] if len(whole) > 1 else 1)
    for local, merged, count in _shares(piece, model, rank.tensor, ways, num_rows=whole[0]):
        column = (rank.tensor * whole[1] if axis == 1 else 0,) if len(whole) > 1 else ()
        sizes = ((1,) if row.stacked else ()) + (count, *whole[1:])
        yield Box((*lead, merged, *column), sizes, box.path, box.start + local * row_bytes, box.record)


def _shares(piece: Piece, model: ModelConfig, rank: int, ways: int, *, num_rows: int) -> Iterator[tuple[int, int, int]]:
    """Row in the rank's tensor, row in the whole one, number of rows: runs of a rank's `num_rows` rows."""
    row = piece.row
    if row.shared != "rows":
        yield 0, 0, num_rows
    elif row.by_group or len(row.parts) == 1:
        yield 0, rank * num_rows, num_rows
    else:
        local = 0
        for run in piece.runs(model):
            count = run.num_rows // ways
            yield local, run.merged_row + rank * count, count
            local += count


def _check_copies(checkpoint: TorchCheckpoint, model: ModelConfig) -> None:
    """What several ranks hold must be the same in all: norms, and the output layer of a tied model."""
    for (rank, n), chunk in checkpoint.chunks.items():
        for name, array in chunk.items():
            first = checkpoint.chunks[Rank(rank.pipeline, 0), n].get(name)
            if not _ROWS[_row_name(name)].shared and (first is None or not same_numbers(first, array)):
                raise ConversionError(
                    f"{checkpoint.directory}: {name} differs between tensor ranks 0 and {rank.tensor}; copy it again"
                )
            embedding = checkpoint.chunks[Rank(0, rank.tensor), 0].get(_EMBEDDING)
            tied = model.tied_embeddings and name == OUTPUT_LAYER
            if tied and (embedding is None or not same_numbers(embedding, array)):
                raise ConversionError(f"{checkpoint.directory}: {name} differs from the embedding that it is tied to")


@dataclass(frozen=True)
class _RankJob:
    """Writes the file of one rank."""

    folder: Path
    weights: Weights
    layout: Layout
    rank: Rank
    local: bool

    def __call__(self, tell: Tell) -> None:
        model, layout = self.weights.model, self.layout
        args = build_args(
            model, _main_dtype(self.weights), tensor=layout.tensor, pipeline=layout.pipeline, virtual=layout.virtual_stages
        )
        tree: dict[str, Any] = {"args": args, "checkpoint_version": 3.0, "iteration": 0}
        for n in range(layout.virtual_stages):
            name = f"model{n}" if layout.virtual_stages > 1 else "model"
            tree[name] = dict(self._chunk(n, tell))
        self.folder.mkdir()
        with OutFile(self.folder / RANK_FILE) as file:
            write_archive(file, tree)

    def _chunk(self, n: int, tell: Tell) -> Iterator[tuple[str, Any]]:
        """The entries of a model chunk, in the order in which megatron-core has them."""
        model, layout, pipeline = self.weights.model, self.layout, self.rank.pipeline
        layers = layers_of(pipeline, n, model.num_layers, layout)
        first, last = layers.start == 0, layers.stop == model.num_layers
        for piece in pieces(model):
            name = piece.row.megatron
            if piece.row.stacked and piece.layer in layers:
                yield from self._entry(self._layer_name(name, piece.layer - layers.start), piece, tell)
            elif (name == _EMBEDDING and first) or (not piece.row.stacked and name != _EMBEDDING and last):
                yield from self._entry(name, piece, tell)
        if model.tied_embeddings and last and not first:
            yield from self._entry(OUTPUT_LAYER, Piece(TABLE[0]), tell)

    def _layer_name(self, name: str, layer: int) -> str:
        inner = name.removeprefix("decoder.layers.")
        local = {theirs: ours for ours, theirs in _LOCAL_NAMES.items()} if self.local else {}
        return f"decoder.layers.{layer}.{local.get(inner, inner)}"

    def _entry(self, name: str, piece: Piece, tell: Tell) -> Iterator[tuple[str, Any]]:
        """A tensor, and the empty state that Transformer Engine's matrices have beside it."""
        yield name, self._tensor(piece, tell)
        if piece.row.shared and name != _EMBEDDING:
            yield name.removesuffix("weight") + "_extra_state", None

    def _tensor(self, piece: Piece, tell: Tell) -> PendingTensor:
        weights, ways = self.weights, self.layout.tensor
        shape, dtype = list(piece.merged_shape(weights.model)), weights.dtype(piece)
        if "vocab" in next(iter(piece.row.parts.values())):
            shape[0] = padded_vocab_size(weights.model.vocab_size, ways)
        axis = {"rows": 0, "columns": 1}.get(piece.row.shared)
        if axis is not None:
            shape[axis] //= ways
        below: Region = tuple(slice(0, size) for size in shape[1:])
        if axis == 1:
            below = (slice(self.rank.tensor * shape[1], (self.rank.tensor + 1) * shape[1]),)

        def blocks() -> Iterator[memoryview]:
            buffer = torch.empty((block_rows(tuple(shape), dtype), *shape[1:]), dtype=dtype)
            for _, merged, count in _shares(piece, weights.model, self.rank.tensor, ways, num_rows=shape[0]):
                for first in range(merged, merged + count, len(buffer)):
                    out = buffer[: merged + count - first]
                    _read_padded(out, weights, piece, (slice(first, first + len(out)), *below))
                    content = flat_bytes(as_bytes(out))
                    yield content
                    tell(len(content), piece.row.megatron)

        return PendingTensor(tuple(shape), dtype, blocks)


def _read_padded(out: torch.Tensor, weights: Weights, piece: Piece, region: Region) -> None:
    """As `read_merged_into`; rows beyond the vocabulary repeat its last one, as in Megatron-LM's own converters.

    Rows of zeros would have the logit 0, which is above that of most tokens.
    """
    num_rows = piece.merged_shape(weights.model)[0]
    real = max(0, min(region[0].stop, num_rows) - region[0].start)
    if real:
        read_merged_into(out[:real], weights, piece, (slice(region[0].start, region[0].start + real), *region[1:]))
    if real < len(out):
        last = torch.empty((1, *out.shape[1:]), dtype=out.dtype)
        read_merged_into(last, weights, piece, (slice(num_rows - 1, num_rows), *region[1:]))
        out[real:] = last


def _main_dtype(weights: Weights) -> torch.dtype:
    return weights.dtype(Piece(TABLE[0]))


def _check_layout(model: ModelConfig, layout: Layout) -> None:
    tensor, groups = layout.tensor, model.num_key_value_heads
    for what, count in (("attention heads", model.num_attention_heads), ("the feed-forward width", model.ffn_hidden_size)):
        if count % tensor:
            raise LayoutError(f"{what} ({count}) cannot be shared by {tensor} tensor ranks; choose a divisor")
    if groups % tensor and tensor % groups:
        raise LayoutError(f"key/value heads ({groups}) cannot be shared by {tensor} tensor ranks; choose a divisor or multiple")
    if layout.virtual_stages > 1 and layout.pipeline == 1:
        raise LayoutError("virtual stages need more than one pipeline rank; choose --pipeline 2 or more")
    layers_of(0, 0, model.num_layers, layout)
