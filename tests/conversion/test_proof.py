"""The proof finds every way in which a conversion may have gone wrong, names the tensor, and publishes nothing."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_poro.conversion import convert, to_hf, to_megatron, verify
from megatron_poro.conversion.megatron import open_as
from megatron_poro.conversion.table import pieces
from megatron_poro.conversion.torch_dist import read_checkpoint_index
from megatron_poro.conversion.weights import MegatronWeights
from megatron_poro.errors import ConversionError
from tests.conversion.chunks import Chunk, write_checkpoint
from tests.conversion.llamas import LLAMA, save_llama

Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.1."


def flip_bit(tensor: torch.Tensor) -> None:
    tensor.view(torch.int32)[1, 2] ^= 1


def swap_rows(tensor: torch.Tensor) -> None:
    tensor[[3, 4]] = tensor[[4, 3]]


def change(name: str, edit: Callable[[torch.Tensor], object]) -> Callable[[Tensors], None]:
    """A damage to one tensor."""

    def damage(tensors: Tensors) -> None:
        edit(tensors[name])

    return damage


def exchange(one: str, other: str) -> Callable[[Tensors], None]:
    """Two tensors of one shape in each other's place."""

    def damage(tensors: Tensors) -> None:
        tensors[one], tensors[other] = tensors[other], tensors[one]

    return damage


def exchange_rows(one: str, other: str) -> Callable[[Tensors], None]:
    """The rows of the smaller tensor in the place of as many of the larger."""

    def damage(tensors: Tensors) -> None:
        count = len(tensors[other])
        first = tensors[one][:count].clone()
        tensors[one][:count], tensors[other][:] = tensors[other], first

    return damage


def pad(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = torch.cat([tensors["lm_head.weight"], torch.zeros(1, 32)])


DAMAGES: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "zeroed tensor": (change(f"{LAYER}mlp.down_proj.weight", torch.Tensor.zero_), "mlp.down_proj.weight"),
    "one flipped bit": (change("model.embed_tokens.weight", flip_bit), "model.embed_tokens.weight"),
    "two swapped rows": (change(f"{LAYER}self_attn.o_proj.weight", swap_rows), "self_attn.o_proj.weight"),
    "sign flip": (change("lm_head.weight", torch.Tensor.neg_), "lm_head.weight"),
    "factor of 2": (change("model.norm.weight", lambda tensor: tensor.mul_(2)), "model.norm.weight"),
    "q and k exchanged": (exchange_rows(f"{LAYER}self_attn.q_proj.weight", f"{LAYER}self_attn.k_proj.weight"), "q_proj.weight"),
    "gate and up exchanged": (exchange(f"{LAYER}mlp.gate_proj.weight", f"{LAYER}mlp.up_proj.weight"), "mlp.gate_proj.weight"),
    "a layer in the wrong place": (
        exchange("model.layers.0.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"),
        "layers.0.mlp",
    ),
    "vocabulary padding left in": (pad, "lm_head.weight"),
    "a missing tensor": (lambda tensors: tensors.pop("model.norm.weight"), "model.norm.weight"),
    "an extra tensor": (lambda tensors: tensors.update({f"{LAYER}extra.weight": torch.ones(2)}), "extra.weight"),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_llama(tmp_path / "source")


@pytest.fixture
def megatron(source: Path, tmp_path: Path) -> Path:
    to_megatron(source, tmp_path / "megatron")
    return tmp_path / "megatron"


def refuse(make: Callable[[], object], out: Path) -> str:
    """The message with which `make` fails; nothing may be left of its output."""
    before = sorted(path.name for path in out.parent.iterdir())
    with pytest.raises(ConversionError) as caught:
        make()
    assert sorted(path.name for path in out.parent.iterdir()) == before
    return str(caught.value)


def sabotage(monkeypatch: pytest.MonkeyPatch, opener: str, damage: Callable[[Path], None]) -> None:
    """Have the written files damaged before the proof opens them."""
    original = getattr(convert, opener)

    def open_damaged(directory: Path, *words: Any) -> Any:
        if ".partial" in str(directory):
            damage(directory)
        return original(directory, *words)

    monkeypatch.setattr(convert, opener, open_damaged)


def rewrite_huggingface(damage: Callable[[Tensors], Any]) -> Callable[[Path], None]:
    def rewrite(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        damage(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")

    return rewrite


def rewrite_megatron(damage: Callable[[Tensors], Any]) -> Callable[[Path], None]:
    """Damage a checkpoint's weights, seen as Hugging Face's tensors."""

    def rewrite(directory: Path) -> None:
        opened = open_as(directory, LLAMA)
        tensors = dict(read_all(opened))
        damage(tensors)
        for path in directory.iterdir():
            if path.name != ".lock":
                path.unlink()
        write_checkpoint(directory, list(as_chunks(tensors)))

    return rewrite


def read_all(opened: MegatronWeights) -> Iterator[tuple[str, torch.Tensor]]:
    for piece in pieces(opened.model):
        for part, (name, shape) in enumerate(zip(piece.names, piece.shapes(opened.model), strict=True)):
            out = torch.empty(shape)
            opened.read_into(out, piece, part, tuple(slice(0, size) for size in shape))
            yield name, out


def as_chunks(tensors: Tensors) -> Iterator[Chunk]:
    """Megatron's tensors of what there is; what the table does not have keeps its name, padding rows go along."""
    left = dict(tensors)
    for piece in pieces(LLAMA):
        parts = [left.pop(name) for name in piece.names if name in left]
        if len(parts) < len(piece.names):
            continue
        merged = torch.cat([parts[run.part][run.part_row : run.part_row + run.num_rows] for run in piece.runs(LLAMA)])
        lead = (LLAMA.num_layers,) if piece.row.stacked else ()
        chunk = merged[None] if lead else merged
        yield piece.row.megatron, chunk, ((piece.layer,) if lead else ()) + (0,) * merged.dim(), lead + tuple(merged.shape)
    for name, tensor in left.items():
        yield name, tensor, (0,) * tensor.dim(), tuple(tensor.shape)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_export_is_found_and_not_published(
    kind: str, megatron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, culprit = DAMAGES[kind]
    sabotage(monkeypatch, "open_huggingface", rewrite_huggingface(damage))
    assert culprit in refuse(lambda: to_hf(megatron, tmp_path / "hf"), tmp_path / "hf")


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind != "vocabulary padding left in"])
def test_a_damaged_import_is_found_and_not_published(
    kind: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, culprit = DAMAGES[kind]
    sabotage(monkeypatch, "open_as", rewrite_megatron(damage))
    message = refuse(lambda: to_megatron(source, tmp_path / "out"), tmp_path / "out")
    assert culprit in message or (kind == "a missing tensor" and "final_layernorm" in message)


@pytest.mark.parametrize("kind", DAMAGES)
def test_verify_finds_a_damaged_copy(kind: str, source: Path, megatron: Path, tmp_path: Path) -> None:
    damage, culprit = DAMAGES[kind]
    tensors = load_file(source / "model.safetensors")
    damage(tensors)
    copy = save_llama(tmp_path / "copy", tensors={name: tensor.contiguous() for name, tensor in tensors.items()})
    try:
        found = " ".join(verify(megatron, copy))
    except ConversionError as error:
        found = str(error)
    assert culprit in found


@pytest.mark.parametrize("direction", ["import", "export"])
def test_a_truncated_file_is_found(
    direction: str, source: Path, megatron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(directory: Path) -> None:
        path = next(path for path in directory.iterdir() if path.suffix in (".safetensors", ".distcp"))
        path.write_bytes(path.read_bytes()[:-500])

    sabotage(monkeypatch, "open_huggingface" if direction == "export" else "open_as", cut)
    out = tmp_path / "out"
    message = refuse(lambda: to_hf(megatron, out) if direction == "export" else to_megatron(source, out), out)
    assert ".safetensors" in message or ".distcp" in message


def test_another_rope_base_is_found(source: Path, megatron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change_base(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"rope_theta": 10000.0}))

    sabotage(monkeypatch, "open_huggingface", change_base)
    assert "rope_theta: 500000.0 against 10000.0" in refuse(lambda: to_hf(megatron, tmp_path / "hf"), tmp_path / "hf")
    change_base(source)
    assert verify(megatron, source) == ["model.rope_theta: 500000.0 against 10000.0"]


def test_padding_rows_of_a_checkpoint_are_not_part_of_the_model(megatron: Path, source: Path, tmp_path: Path) -> None:
    index = read_checkpoint_index(megatron)
    assert index.tensors["output_layer.weight"].shape == (511, 32)
    (tmp_path / "padded").mkdir()
    (tmp_path / "padded" / "model.json").write_bytes((megatron / "model.json").read_bytes())
    tensors = load_file(source / "model.safetensors")
    padded: list[Chunk] = [
        (name, torch.cat([chunk, torch.ones(9, 32)]), offsets, (520, 32)) if shape == (511, 32) else (name, chunk, offsets, shape)
        for name, chunk, offsets, shape in as_chunks(tensors)
    ]
    write_checkpoint(tmp_path / "padded", padded)
    assert verify(tmp_path / "padded", source) == []
