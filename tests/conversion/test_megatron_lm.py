"""Megatron-LM's own checkpoints: what unmodified megatron-core wrote is read, and what is written it loads, at every layout."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_poro.config import ModelConfig
from megatron_poro.conversion import Like, MegatronLM, to_hf, to_megatron, verify
from megatron_poro.errors import ConversionError, LayoutError
from megatron_poro.topology import Layout
from tests.conversion.llamas import LLAMA, save_llama

SIZES = (1, 2, 4, 8)
LAYOUTS = [(t, p, v) for t in SIZES for p in SIZES for v in (1, 2) if p > 1 or v == 1]
"""All of {1, 2, 4, 8} x {1, 2, 4, 8} x {1, 2} that megatron-core has: virtual stages need a pipeline."""
WIDE = replace(
    LLAMA,
    num_layers=16,
    num_attention_heads=8,
    num_key_value_heads=8,
    ffn_hidden_size=64,
    vocab_size=509,
    rope_original_length=8192,
)
MODELS = {"untied": WIDE, "tied": replace(WIDE, tied_embeddings=True), "grouped": replace(WIDE, num_key_value_heads=4)}
MAIN_LAYOUTS = [(1, 1, 1), (2, 1, 1), (2, 2, 2), (4, 4, 2), (8, 8, 1)]
"""Those at which the other models are tried too."""


def layouts_of(name: str) -> list[tuple[int, int, int]]:
    return LAYOUTS if name == "untied" else MAIN_LAYOUTS


def text(layout: tuple[int, int, int]) -> str:
    return "x".join(map(str, layout))


def ranks(what: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.conversion.megatron_ranks", what, *map(str, words)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face directories of all models, and their conversions."""
    folder = tmp_path_factory.mktemp("sources")
    for name, model in MODELS.items():
        to_megatron(save_llama(folder / name, model), folder / f"{name}-megatron")
    return folder


@pytest.fixture(scope="module", params=MODELS)
def written(request: pytest.FixtureRequest, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A model's name, and where megatron-core wrote it at its layouts."""
    pytest.importorskip("megatron.core")
    folder, name = tmp_path_factory.mktemp("written"), request.param
    done = ranks("write", sources / f"{name}-megatron", folder, *map(text, layouts_of(name)), "--vocab-multiple", "128")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return name, folder


def test_what_megatron_core_wrote_comes_back_bit_for_bit_at_every_layout(
    written: tuple[str, Path], sources: Path, tmp_path: Path
) -> None:
    name, folder = written
    for layout in layouts_of(name):
        out = tmp_path / text(layout)
        to_hf(folder / text(layout), out, like=Like(sources / name))
        assert verify(sources / name, out) == [], layout
        assert verify(folder / text(layout), sources / name) == [], layout


def test_megatron_core_loads_what_is_written_for_it_at_every_layout(
    written: tuple[str, Path], sources: Path, tmp_path: Path
) -> None:
    name, _ = written
    for layout in layouts_of(name):
        tensor, pipeline, virtual = layout
        target = MegatronLM("torch", Layout(tensor, pipeline, 1, virtual), local=True)
        to_megatron(sources / name, tmp_path / text(layout), megatron_lm=target)
    done = ranks("check", sources / f"{name}-megatron", tmp_path, *map(text, layouts_of(name)))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_a_checkpoint_of_megatron_lm_becomes_one_of_ours(written: tuple[str, Path], sources: Path, tmp_path: Path) -> None:
    name, folder = written
    to_megatron(folder / "2x2x2" / "iter_0000007", tmp_path / "ours", like=Like(vocab_size=MODELS[name].vocab_size))
    assert verify(tmp_path / "ours", sources / name) == []


@pytest.mark.parametrize("local", [False, True])
def test_both_spellings_of_the_norms_are_read(sources: Path, tmp_path: Path, local: bool) -> None:
    to_megatron(sources / "grouped", tmp_path / "lm", megatron_lm=MegatronLM("torch", Layout(2, 2), local=local))
    state = torch.load(tmp_path / "lm" / "release" / "mp_rank_01_001" / "model_optim_rng.pt", weights_only=False)
    assert ("decoder.layers.0.input_layernorm.weight" in state["model"]) == local
    assert verify(tmp_path / "lm", sources / "grouped") == []


def test_the_distributed_format_of_megatron_lm_goes_out_and_in(sources: Path, tmp_path: Path) -> None:
    to_megatron(sources / "untied", tmp_path / "lm", megatron_lm=MegatronLM("torch_dist"))
    assert (tmp_path / "lm" / "latest_checkpointed_iteration.txt").read_text() == "release\n"
    common = torch.load(tmp_path / "lm" / "release" / "common.pt", weights_only=False)
    assert (common["args"].rotary_base, common["args"].use_rope_scaling, common["checkpoint_version"]) == (500000, True, 3.0)
    to_hf(tmp_path / "lm", tmp_path / "hf", like=Like(sources / "untied"))
    assert verify(tmp_path / "hf", sources / "untied") == []


def test_without_a_vocabulary_size_the_way_out_is_named(written: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="give --reference HF_DIR"):
        to_hf(written[1] / "1x1x1", tmp_path / "hf")


@pytest.mark.parametrize(("vocab_size", "message"), [(100, "100 tokens would not"), (2000, "2000 tokens would not")])
def test_a_vocabulary_that_padding_does_not_explain_is_refused(
    written: tuple[str, Path], tmp_path: Path, vocab_size: int, message: str
) -> None:
    with pytest.raises(ConversionError, match=message):
        to_hf(written[1] / "1x1x1", tmp_path / "hf", like=Like(vocab_size=vocab_size))


def test_two_checkpoints_of_megatron_lm_are_compared_without_knowing_the_vocabulary(written: tuple[str, Path]) -> None:
    folder = written[1]
    assert verify(folder / "2x1x1", folder / "2x2x2") == []


def test_a_reference_of_another_model_is_refused(written: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = written
    other = save_llama(tmp_path / "other", replace(MODELS[name], rope_theta=10000.0))
    with pytest.raises(ConversionError, match=r"rope_theta: 10000.0 against 500000.0"):
        to_hf(folder / "1x1x1", tmp_path / "hf", like=Like(other))


@pytest.fixture
def lm(sources: Path, tmp_path: Path) -> Path:
    """A checkpoint at 2x2, to be damaged."""
    to_megatron(sources / "untied", tmp_path / "lm", megatron_lm=MegatronLM("torch", Layout(2, 2)))
    return tmp_path / "lm" / "release"


def refusal(directory: Path, sources: Path) -> str:
    with pytest.raises(ConversionError) as caught:
        to_hf(directory, directory.parent / "hf", like=Like(sources / "untied"))
    assert not (directory.parent / "hf").exists()
    return str(caught.value)


def test_a_missing_rank_is_refused_by_name(lm: Path, sources: Path) -> None:
    (lm / "mp_rank_01_000" / "model_optim_rng.pt").unlink()
    assert "tensor rank 1, pipeline rank 0" in refusal(lm, sources)


def test_ranks_that_disagree_on_what_both_hold_are_refused(lm: Path, sources: Path) -> None:
    path = lm / "mp_rank_01_000" / "model_optim_rng.pt"
    state = torch.load(path, weights_only=False)
    state["model"]["decoder.layers.3.self_attention.linear_qkv.layer_norm_weight"][5] += 1
    torch.save(state, path)
    assert "linear_qkv.layer_norm_weight differs between tensor ranks 0 and 1" in refusal(lm, sources)


def test_a_changed_byte_is_found_by_the_checksum_that_torch_wrote(lm: Path, sources: Path) -> None:
    path = lm / "mp_rank_00_000" / "model_optim_rng.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "is damaged" in refusal(lm, sources)


def test_a_truncated_rank_file_is_refused(lm: Path, sources: Path) -> None:
    path = lm / "mp_rank_00_001" / "model_optim_rng.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "is damaged" in refusal(lm, sources)


@pytest.mark.parametrize(
    ("name", "value"),
    [("normalization", "LayerNorm"), ("swiglu", False), ("add_qkv_bias", True), ("num_experts", 8), ("qk_layernorm", True)],
)
def test_arguments_of_another_architecture_are_refused_by_name(lm: Path, sources: Path, name: str, value: object) -> None:
    path = lm / "mp_rank_00_000" / "model_optim_rng.pt"
    state = torch.load(path, weights_only=False)
    setattr(state["args"], name, value)
    torch.save(state, path)
    assert f"{name} is {value!r}" in refusal(lm, sources)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(3, 1), "attention heads"),
        (Layout(1, 5), "num_layers"),
        (Layout(1, 1, 1, 2), "virtual stages need"),
        (Layout(8, 1), "key/value heads"),
    ],
)
def test_a_layout_that_does_not_divide_the_model_is_refused(sources: Path, tmp_path: Path, layout: Layout, message: str) -> None:
    model: ModelConfig = replace(WIDE, num_attention_heads=24, num_key_value_heads=3) if layout.tensor == 8 else WIDE
    source = save_llama(tmp_path / "hf", model)
    with pytest.raises(LayoutError, match=message):
        to_megatron(source, tmp_path / "lm", megatron_lm=MegatronLM("torch", layout))
    assert not (tmp_path / "lm").exists()
