"""Hugging Face directories: what is read, what is refused, and what is written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from megatron_poro.config import ModelConfig
from megatron_poro.conversion import to_megatron
from megatron_poro.conversion.hf_config import read_config
from megatron_poro.conversion.huggingface import open_huggingface, write_huggingface
from megatron_poro.errors import ConversionError
from tests.conversion.llamas import LLAMA, UNSCALED, random_tensors, save_llama, save_sharded


def refusal(directory: Path) -> str:
    """The message with which a conversion is refused, after checking that nothing was written."""
    out = directory.with_name("out")
    with pytest.raises(ConversionError) as caught:
        to_megatron(directory, out)
    assert sorted(path.name for path in directory.parent.iterdir()) == [directory.name]
    return str(caught.value)


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_type": "llama3",
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_theta": 7.0, "rope_scaling": LLAMA3}, replace(LLAMA, rope_theta=7.0)),
        ({"rope_theta": None, "rope_parameters": LLAMA3 | {"rope_theta": 7.0}}, replace(LLAMA, rope_theta=7.0)),
        ({"rope_theta": 7.0}, replace(LLAMA, rope_theta=7.0, rope_scaling_factor=1.0)),
        ({"rope_theta": None}, replace(LLAMA, rope_theta=10000.0, rope_scaling_factor=1.0)),
    ],
)
def test_rotary_keys_are_read_in_the_style_of_transformers_4_and_5(
    tmp_path: Path, config: dict[str, Any], expected: ModelConfig
) -> None:
    directory = save_llama(tmp_path / "hf", config={"rope_scaling": None} | config)
    found = read_config(directory)
    scaled = expected.rope_scaling_factor != 1
    assert found == expected if scaled else found == replace(expected, rope_original_length=8192)


def test_absent_keys_mean_what_transformers_takes_them_for(tmp_path: Path) -> None:
    absent = ("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings", "head_dim")
    model = read_config(save_llama(tmp_path / "hf", UNSCALED, config=dict.fromkeys(absent)))
    assert model.num_key_value_heads == model.num_attention_heads
    assert (model.norm_epsilon, model.tied_embeddings, model.max_position_embeddings) == (1e-6, False, 2048)


@pytest.mark.parametrize(
    ("config", "culprit"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"model_type": None}, "no model_type"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": LLAMA3 | {"attention_factor": 2.0}}, "attention_factor"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "rope_scaling"),
        ({"rope_scaling": None, "rope_parameters": {"rope_theta": 5.0}}, "rope_theta is both 500000.0 and 5.0"),
        ({"rope_scaling": LLAMA3 | {"factor": "8"}}, "rope_scaling_factor"),
        ({"rope_scaling": ["llama3"]}, "as one table"),
        ({"quantization_config": {}}, "quantization_config"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "32"}, "hidden_size"),
    ],
)
def test_a_config_that_would_change_the_model_is_refused_by_name(tmp_path: Path, config: dict[str, Any], culprit: str) -> None:
    assert culprit in refusal(save_llama(tmp_path / "hf", config=config))


def test_a_missing_tensor_is_refused_by_name(tmp_path: Path) -> None:
    tensors = random_tensors()
    del tensors["model.norm.weight"]
    assert "lacks model.norm.weight" in refusal(save_llama(tmp_path / "hf", tensors=tensors))


def test_an_unknown_tensor_is_refused_by_name(tmp_path: Path) -> None:
    tensors = random_tensors() | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}
    assert "self_attn.q_proj.bias" in refusal(save_llama(tmp_path / "hf", tensors=tensors))


def test_a_tensor_of_the_wrong_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    tensors = random_tensors() | {"model.embed_tokens.weight": torch.zeros(512, 32)}
    message = refusal(save_llama(tmp_path / "hf", tensors=tensors))
    assert "model.embed_tokens.weight is [512, 32], but config.json implies [511, 32]" in message


def test_a_quantised_tensor_is_refused(tmp_path: Path) -> None:
    tensors = random_tensors() | {"model.norm.weight": torch.zeros(32, dtype=torch.int8)}
    assert "model.norm.weight holds I8" in refusal(save_llama(tmp_path / "hf", tensors=tensors))


def test_number_types_that_one_megatron_tensor_cannot_hold_are_refused(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = random_tensors() | {name: torch.zeros(48, 32, dtype=torch.bfloat16)}
    assert f"{name} is torch.bfloat16" in refusal(save_llama(tmp_path / "hf", tensors=tensors))


def test_rotary_buffers_and_the_copy_of_a_tied_embedding_are_dropped(tmp_path: Path) -> None:
    tied = replace(LLAMA, tied_embeddings=True)
    tensors = random_tensors(tied)
    copy = tensors["model.embed_tokens.weight"].clone()
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4), "lm_head.weight": copy}
    opened = open_huggingface(save_llama(tmp_path / "hf", tied, tensors=tensors | extra))
    assert not set(opened.tensors) & set(extra)


def test_an_output_layer_that_is_tied_but_differs_is_refused(tmp_path: Path) -> None:
    tied = replace(LLAMA, tied_embeddings=True)
    tensors = random_tensors(tied) | {"lm_head.weight": torch.zeros(511, 32)}
    assert "lm_head.weight differs from model.embed_tokens.weight" in refusal(save_llama(tmp_path / "hf", tied, tensors=tensors))


def test_a_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    directory = save_sharded(tmp_path / "hf")
    (directory / "b.safetensors").unlink()
    assert "b.safetensors is missing" in refusal(directory)


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    directory = save_llama(tmp_path / "hf")
    (directory / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(directory)


@pytest.mark.parametrize("shard", ["../b.safetensors", "/b.safetensors", "", 3, ".."])
def test_an_index_that_leaves_the_folder_is_refused(tmp_path: Path, shard: object) -> None:
    directory = save_sharded(tmp_path / "hf")
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = shard
    index.write_text(json.dumps(content))
    assert "no file of the folder" in refusal(directory)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path: Path) -> None:
    directory = save_sharded(tmp_path / "hf")
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = "a.safetensors"
    index.write_text(json.dumps(content))
    assert "disagree on model.norm.weight" in refusal(directory)


def test_a_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    path = save_llama(tmp_path / "hf") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors is damaged" in refusal(path.parent)


@pytest.mark.parametrize("start", [b"", b"\xff" * 8, (10).to_bytes(8, "little") + b"no header."])
def test_a_corrupt_header_is_refused_by_name(tmp_path: Path, start: bytes) -> None:
    path = save_llama(tmp_path / "hf") / "model.safetensors"
    path.write_bytes(start)
    assert "model.safetensors is damaged" in refusal(path.parent)


def test_shards_are_cut_at_the_given_size_and_read_back_equal(tmp_path: Path) -> None:
    source = open_huggingface(save_llama(tmp_path / "hf"))
    out = tmp_path / "out"
    out.mkdir()
    write_huggingface(out, source, workers=2, advance=lambda *_: None, shard_bytes=40_000)
    (out / "config.json").write_text((tmp_path / "hf" / "config.json").read_text())
    shards = sorted(out.glob("*.safetensors"))
    assert [path.name for path in shards] == [f"model-{n:05}-of-00005.safetensors" for n in range(1, 6)]
    assert open_huggingface(out).tensors.keys() == source.tensors.keys()
    for path in shards:
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118
                assert torch.equal(file.get_tensor(name), random_tensors()[name])
