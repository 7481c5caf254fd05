"""Whole conversions: there and back, proved, published whole or not at all."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_poro.config import ModelConfig
from megatron_poro.conversion import (
    Effort,
    Like,
    megatron,
    open_megatron,
    proof,
    read_model_file,
    to_hf,
    to_megatron,
    verify,
    write_model_file,
)
from megatron_poro.conversion.arrays import Region
from megatron_poro.conversion.files import publish
from megatron_poro.conversion.hf_config import read_config
from megatron_poro.conversion.huggingface import open_huggingface
from megatron_poro.conversion.table import Piece, pieces
from megatron_poro.conversion.weights import Weights, read_merged_into
from megatron_poro.errors import ConversionError
from tests.conversion.chunks import Chunk, write_checkpoint
from tests.conversion.generations import GENERATIONS, write_config
from tests.conversion.llamas import LLAMA, UNSCALED, digest, merge, random_tensors, save_llama, save_sharded
from tests.shared_data import shared


def test_a_trained_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    source = shared("checkpoints/stories260K_hf")
    there = to_megatron(source, tmp_path / "megatron")
    back = to_hf(tmp_path / "megatron", tmp_path / "hf", like=Like(source))
    assert there["tensors"] == back["tensors"]
    assert there["source"]["weights_sha256"] == back["source"]["weights_sha256"]
    assert verify(source, tmp_path / "hf") == verify(tmp_path / "megatron", source) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
def test_every_number_type_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    model = replace(LLAMA, tied_embeddings=tied)
    source = save_llama(tmp_path / "source", model, tensors=random_tensors(model, dtype))
    to_megatron(source, tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "hf")
    assert verify(source, tmp_path / "hf") == []
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["torch_dtype"] == str(dtype).removeprefix("torch.")


def test_a_sharded_source_is_the_same_model(tmp_path: Path) -> None:
    to_megatron(save_sharded(tmp_path / "sharded"), tmp_path / "megatron")
    assert verify(tmp_path / "megatron", save_llama(tmp_path / "single")) == []


@pytest.mark.parametrize("model", [LLAMA, UNSCALED, replace(LLAMA, head_dim=6), replace(LLAMA, rope_theta=1234.5)])
def test_the_model_is_carried_there_and_back(tmp_path: Path, model: ModelConfig) -> None:
    to_megatron(save_llama(tmp_path / "source", model), tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "hf")
    carried = replace(model, rope_original_length=8192) if model.rope_scaling_factor == 1 else model
    assert read_model_file(tmp_path / "megatron")[0] == open_huggingface(tmp_path / "hf").model == carried


def test_the_proof_names_every_tensor_with_its_hash(tmp_path: Path) -> None:
    to_megatron(save_llama(tmp_path / "source"), tmp_path / "megatron")
    proof = json.loads((tmp_path / "megatron" / "conversion.json").read_text())
    assert proof["tensors"] == {name: digest(tensor) for name, tensor in random_tensors().items()}
    assert proof["source"]["name"] == "source"
    assert set(proof["versions"]) == {"megatron_poro", "torch", "safetensors", "python"}


def test_special_token_ids_travel_with_the_checkpoint(tmp_path: Path) -> None:
    to_megatron(save_llama(tmp_path / "source"), tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "hf", max_position_embeddings=64)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (3, [4, 5])
    assert config["max_position_embeddings"] == 64


def test_a_reference_gives_tokenizer_and_token_ids(tmp_path: Path) -> None:
    to_megatron(save_llama(tmp_path / "source"), tmp_path / "megatron")
    reference = save_llama(tmp_path / "reference", config={"bos_token_id": 9})
    (reference / "tokenizer.json").write_text("{}")
    to_hf(tmp_path / "megatron", tmp_path / "hf", like=Like(reference))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["bos_token_id"] == 9
    assert (tmp_path / "hf" / "tokenizer.json").read_text() == "{}"


def test_a_reference_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    to_megatron(save_llama(tmp_path / "source"), tmp_path / "megatron")
    reference = save_llama(tmp_path / "reference", replace(LLAMA, vocab_size=512))
    with pytest.raises(ConversionError, match=r"vocab_size: 512 against 511"):
        to_hf(tmp_path / "megatron", tmp_path / "hf", like=Like(reference))


def test_a_cast_export_is_proved_against_the_cast_values(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "source")
    to_megatron(source, tmp_path / "megatron")
    proof = to_hf(tmp_path / "megatron", tmp_path / "hf", dtype="bfloat16")
    assert proof["cast"] == "bfloat16"
    assert proof["tensors"] == {name: digest(tensor.bfloat16()) for name, tensor in random_tensors().items()}
    assert proof["source"]["weights_sha256"] == read_model_file(tmp_path / "megatron")[1]["weights_sha256"]
    assert verify(source, tmp_path / "hf")[0].startswith("the number types differ: torch.float32 against torch.bfloat16")


def test_layers_that_have_each_their_own_tensor_are_read(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)
    chunks: list[Chunk] = []
    for piece in pieces(LLAMA):
        chunk = merge(piece, [tensors[name] for name in piece.names], LLAMA)
        name = piece.row.megatron.replace(".layers.", f".layers.{piece.layer}.")
        chunks.append((name, chunk, (0,) * chunk.dim(), tuple(chunk.shape)))
    (tmp_path / "megatron").mkdir()
    write_checkpoint(tmp_path / "megatron", chunks)
    write_model_file(tmp_path / "megatron", LLAMA, {})
    assert verify(tmp_path / "megatron", save_llama(tmp_path / "source")) == []


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_of_llama_comes_back_with_its_config(tmp_path: Path, generation: str) -> None:
    config = GENERATIONS[generation]
    source = save_llama(tmp_path / "source", read_config(write_config(tmp_path / "config", config)), config=config)
    to_megatron(source, tmp_path / "megatron")
    proof = to_hf(tmp_path / "megatron", tmp_path / "hf", like=Like(source))
    assert verify(source, tmp_path / "hf") == []
    exported = json.loads((tmp_path / "hf" / "config.json").read_text())
    written_by = ("transformers_version", "pretraining_tp", "use_cache", "torch_dtype", "attention_dropout", "rope_scaling")
    assert {key: exported[key] for key in config if key not in written_by} == {
        key: value for key, value in config.items() if key not in written_by
    }
    if config["rope_scaling"]:
        assert exported["rope_scaling"] == config["rope_scaling"]
    assert proof["proved"]


def test_the_proof_gives_a_reason_for_each_key_that_is_not_used(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "source", config={"pretraining_tp": 2, "transformers_version": "4.1"})
    ignored = to_megatron(source, tmp_path / "megatron")["ignored_config_keys"]
    assert ignored["pretraining_tp"] == "slices the same products"
    assert {"transformers_version", "bos_token_id", "torch_dtype"} <= set(ignored)


def test_without_the_proof_nothing_is_claimed_and_verify_can_do_it_later(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "source")
    proof = to_megatron(source, tmp_path / "megatron", effort=Effort(proof=False))
    assert (proof["proved"], proof["tensors"], proof["source"]["weights_sha256"]) == (False, {}, None)
    to_hf(tmp_path / "megatron", tmp_path / "hf", effort=Effort(workers=3, proof=False))
    assert "was not proved" in (tmp_path / "hf" / "README.md").read_text()
    assert verify(tmp_path / "megatron", source) == verify(tmp_path / "hf", source) == []


def test_a_reference_may_be_a_tokenizer_alone(tmp_path: Path) -> None:
    to_megatron(save_llama(tmp_path / "source"), tmp_path / "megatron")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer" / "LICENSE").write_text("terms")
    to_hf(tmp_path / "megatron", tmp_path / "hf", like=Like(tmp_path / "tokenizer"))
    assert (tmp_path / "hf" / "LICENSE").read_text() == "terms"
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["bos_token_id"] == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConversionError, match=r"neither config\.json nor a tokenizer"):
        to_hf(tmp_path / "megatron", tmp_path / "other", like=Like(tmp_path / "empty"))


def test_a_target_inside_the_source_is_refused(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "source")
    with pytest.raises(ConversionError, match="which is not to be changed"):
        to_megatron(source, source / "megatron")


def test_where_the_weights_of_a_checkpoint_came_from_is_carried_on(tmp_path: Path) -> None:
    to_megatron(save_llama(tmp_path / "Llama-X"), tmp_path / "first")
    to_megatron(tmp_path / "first", tmp_path / "second")
    source = read_model_file(tmp_path / "second")[1]
    assert (source["name"], source["origin"]["name"], source["token_ids"]["bos_token_id"]) == ("first", "Llama-X", 3)
    to_hf(tmp_path / "second", tmp_path / "hf")
    assert "It started from `Llama-X`" in (tmp_path / "hf" / "README.md").read_text()


def test_an_export_of_an_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="is a Hugging Face directory already"):
        to_hf(save_llama(tmp_path / "source"), tmp_path / "hf")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text(""), "is a file; give its folder"),
        (lambda path: path.mkdir(), "is no model directory"),
        (lambda path: (path / "checkpoints" / "step_00000007").mkdir(parents=True), "such as .*step_00000007"),
    ],
)
def test_what_is_no_model_directory_is_told_apart(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "x")
    with pytest.raises(ConversionError, match=message):
        to_hf(tmp_path / "x", tmp_path / "hf")


def test_an_existing_target_is_refused_and_left_alone(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "source")
    (tmp_path / "megatron").mkdir()
    with pytest.raises(ConversionError, match="exists; choose another output"):
        to_megatron(source, tmp_path / "megatron")
    assert list((tmp_path / "megatron").iterdir()) == []


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **keywords: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(proof, "compare", interrupted)
    source = save_llama(tmp_path / "source")
    with pytest.raises(KeyboardInterrupt):
        to_megatron(source, tmp_path / "megatron")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_does_not_read_back_as_written_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_wrong(out: torch.Tensor, weights: Weights, piece: Piece, region: Region) -> None:
        read_merged_into(out, weights, piece, region)
        out += piece.row.megatron == "decoder.final_layernorm.weight"

    monkeypatch.setattr(megatron, "read_merged_into", read_wrong)
    source = save_llama(tmp_path / "source")
    with pytest.raises(ConversionError, match=r"model\.norm\.weight: numbers differ; 1 in all"):
        to_megatron(source, tmp_path / "megatron")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        to_megatron(save_llama(tmp_path / "source"), tmp_path / "megatron")
        to_hf(tmp_path / "megatron", tmp_path / "hf")
    finally:
        os.umask(mask)
    written = [*(tmp_path / "megatron").iterdir(), *(tmp_path / "hf").iterdir()]
    assert {oct(path.stat().st_mode & 0o777) for path in written} == {"0o640"}


def test_padding_rows_of_the_vocabulary_are_cut_and_optimizer_tensors_left_unread(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA)
    chunks: list[Chunk] = [("optimizer.state.exp_avg.output_layer.weight", torch.zeros(1), (0,), (2,))]
    for piece in pieces(LLAMA):
        chunk = merge(piece, [tensors[name] for name in piece.names], LLAMA)
        if "vocab" in str(piece.row.parts):
            chunk = torch.cat([chunk, torch.full((1, 32), torch.nan)])
        lead = (LLAMA.num_layers,) if piece.row.stacked else ()
        offsets = ((piece.layer,) if lead else ()) + (0,) * chunk.dim()
        chunks.append((piece.row.megatron, chunk[None] if lead else chunk, offsets, lead + tuple(chunk.shape)))
    (tmp_path / "megatron").mkdir()
    write_checkpoint(tmp_path / "megatron", chunks)
    write_model_file(tmp_path / "megatron", LLAMA, {})
    to_hf(tmp_path / "megatron", tmp_path / "hf")
    assert verify(tmp_path / "hf", save_llama(tmp_path / "source")) == []


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"vocab_size": 512}, r"embedding.word_embeddings.weight is \[511, 32\], but the model implies \[512, 32\]"),
        ({"ffn_hidden_size": 24}, "linear_fc1.weight is"),
        ({"tied_embeddings": True}, "lists output_layer.weight"),
        ({"num_layers": 2}, "layer_norm_weight is"),
    ],
)
def test_a_checkpoint_that_is_not_the_model_it_claims_is_refused(tmp_path: Path, change: dict[str, Any], culprit: str) -> None:
    to_megatron(save_llama(tmp_path / "source"), tmp_path / "megatron")
    write_model_file(tmp_path / "megatron", replace(LLAMA, **change), {})
    with pytest.raises(ConversionError, match=culprit):
        open_megatron(tmp_path / "megatron")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1, "model": {"nonsense": 1}}'])
def test_a_damaged_model_file_is_refused(tmp_path: Path, content: str) -> None:
    to_megatron(save_llama(tmp_path / "source"), tmp_path / "megatron")
    (tmp_path / "megatron" / "model.json").write_text(content)
    with pytest.raises(ConversionError, match=r"model\.json"):
        to_hf(tmp_path / "megatron", tmp_path / "hf")


def test_verify_names_the_tensors_that_differ(tmp_path: Path) -> None:
    tensors = random_tensors()
    one = save_llama(tmp_path / "one", tensors=tensors)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] += 1e-6
    assert verify(one, save_llama(tmp_path / "other", tensors=tensors)) == ["model.layers.1.mlp.up_proj.weight: numbers differ"]


def test_verify_names_the_keys_that_differ(tmp_path: Path) -> None:
    one, other = save_llama(tmp_path / "one"), save_llama(tmp_path / "other", config={"rms_norm_eps": 1e-6})
    assert verify(one, other) == ["model.norm_epsilon: 1e-05 against 1e-06"]


MEASURE = """
import re, sys
from pathlib import Path
from megatron_poro.conversion import to_hf, to_megatron

def peak_bytes():
    return 1024 * int(re.search("VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

folder = Path(sys.argv[1])
for name in ("small", "big"):
    before = peak_bytes()
    to_megatron(folder / name, folder / f"{name}-megatron")
    to_hf(folder / f"{name}-megatron", folder / f"{name}-hf")
print(peak_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    model = replace(LLAMA, hidden_size=256, ffn_hidden_size=512, num_key_value_heads=4)
    for name, num_layers in (("small", 24), ("big", 72)):
        save_llama(tmp_path / name, replace(model, num_layers=num_layers))
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("small", "big")]
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < (sizes[1] - sizes[0]) / 8, f"{grown / 1e6:.0f} MB more for {(sizes[1] - sizes[0]) / 1e6:.0f} MB more of model"


def test_what_a_killed_conversion_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".out.partial" / "folder").mkdir(parents=True)
    (tmp_path / ".out.partial" / "__0_0.distcp").write_bytes(b"half")
    (tmp_path / ".out.partial" / ".lock").touch()
    to_megatron(save_llama(tmp_path / "hf"), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "out"}
    assert not (tmp_path / "out" / "folder").exists()
    assert verify(tmp_path / "out", tmp_path / "hf") == []


def test_two_conversions_to_one_target_do_not_mix(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf")
    with publish(tmp_path / "out"), pytest.raises(ConversionError, match="is being written by another process"):
        to_megatron(source, tmp_path / "out")
    assert (tmp_path / "out").is_dir()
