"""Unmodified megatron-core, the other side's own reader and writer, agrees with what is converted."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_poro.conversion import megatron, read_checkpoint_index, to_megatron
from megatron_poro.conversion.huggingface import open_huggingface
from megatron_poro.conversion.megatron import open_as
from megatron_poro.conversion.verify import compare
from tests.conversion.llamas import UNSCALED, save_llama
from tests.conversion.megatron_program import TOKENS
from tests.shared_data import shared

JOBS = [("stories", "1x1"), ("tied", "1x3"), ("untied", "2x1")]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hugging Face directories. 511 tokens make one row of padding at two-way tensor parallelism."""
    folder = tmp_path_factory.mktemp("huggingface")
    return {
        "stories": shared("checkpoints/stories260K_hf"),
        "tied": save_llama(folder / "tied", replace(UNSCALED, tied_embeddings=True)),
        "untied": save_llama(folder / "untied", UNSCALED),
    }


@pytest.fixture(scope="module")
def saved(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where megatron-core saved what it loaded, by layout."""
    pytest.importorskip("megatron.core")
    folder = tmp_path_factory.mktemp("megatron")
    with pytest.MonkeyPatch.context() as patch:
        # As with tensors of real size, several chunks of rows make one.
        patch.setattr(megatron, "CHUNK_BYTES", 3000)
        for name, source in sources.items():
            to_megatron(source, folder / name)
    arguments = [argument for name, layout in JOBS for argument in (str(folder / name), layout)]
    command = [sys.executable, "-m", "tests.conversion.megatron_program", str(folder / "out"), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "out"


@pytest.mark.parametrize(("name", "layout"), JOBS)
def test_megatron_core_loads_strictly_and_saves_the_same_weights(
    sources: dict[str, Path], saved: Path, name: str, layout: str
) -> None:
    source = open_huggingface(sources[name])
    hashes, different = compare(source, open_as(saved / layout, source.model), advance=lambda *_: None)
    assert hashes
    assert not different


def test_what_megatron_core_saved_at_two_way_tensor_parallelism_is_padded_and_cut(saved: Path) -> None:
    index = read_checkpoint_index(saved / "2x1")
    assert index.tensors["output_layer.weight"].shape == (512, 32)
    assert any(name.endswith("_extra_state/shard_0_3") for name in index.objects)
    assert open_as(saved / "2x1", UNSCALED).model.vocab_size == 511


def test_megatron_core_computes_what_transformers_computes(sources: dict[str, Path], saved: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(sources["stories"])
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0]
    # fp32, 5 layers: other summation orders move logits of size 10 by about 1e-6 of themselves.
    torch.testing.assert_close(torch.load(saved / "logits.pt"), expected, rtol=1e-4, atol=1e-4)
