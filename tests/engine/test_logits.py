"""Logits of a converted model in our engine are transformers' at every layout, within and beyond the original length."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_poro.conversion import to_megatron
from tests.engine.logits_program import LENGTHS, VOCAB_SIZE, token_ids
from tests.runs import REPOSITORY

# The largest gap at a position, as a share of the largest logit there. A logit is a sum of 64 products whose rounding error grows
# with the products, of whose size the largest logit tells, and not with the sum, which may cancel to anything near 0: a share of
# each single logit would bound nothing. 1e-5 is 84 units of fp32's last place, for programs that add in different orders through
# four layers. Seen: 0.9e-6 at 16 tokens to 2.0e-6 at 300 at every layout; transformers' own two attentions differ by as much.
TOLERANCE = 1e-5
LAYOUTS = {
    "untied": ("1x1x1", "2x1x1", "1x2x1", "2x2x1+sequence", "1x2x2", "2x2x2", "2x2x2+sequence"),
    "tied": ("1x1x1", "2x2x1"),
    "factor": ("1x1x1",),
}
JOBS = [(name, layout) for name, layouts in LAYOUTS.items() for layout in layouts]
COMPARED = [job for job in JOBS if job[0] != "factor"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories that transformers wrote; `factor` is `untied` with another rotary scaling factor in its config.json."""
    folder = tmp_path_factory.mktemp("huggingface")
    for tied in (False, True):
        save_llama(folder / ("tied" if tied else "untied"), tied=tied)
    shutil.copytree(folder / "untied", folder / "factor")
    config = json.loads((folder / "factor" / "config.json").read_text())
    config["rope_parameters"]["factor"] = 4.0
    (folder / "factor" / "config.json").write_text(json.dumps(config))
    return {name: folder / name for name in LAYOUTS}


def save_llama(directory: Path, *, tied: bool) -> None:
    """A random Llama whose logits and attention scores have standard deviations of about 2.5 and 1, as a trained one's may.

    In heads of 16 numbers the wavelengths are 6, 32, 167 and more tokens: llama3 scaling keeps the first, blends the second and
    stretches the others.
    """
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    )
    model = transformers.LlamaForCausalLM(config)
    # With these numbers the best logit leads the second by 8e-5 of itself or more at every position, so no rounding swaps them.
    generator = torch.Generator().manual_seed(11)
    for name, weight in model.named_parameters():
        numbers = torch.randn(weight.shape, generator=generator)
        # Larger queries and keys make scores large, and every layer then multiplies the rounding error of the one before: at twice
        # this size transformers' own fp32 logits are 2e-5 from its fp64 ones.
        scale = 0.3 if "embed_tokens" in name or "lm_head" in name else weight.shape[-1] ** -0.5
        weight.data = 1 + 0.1 * numbers if weight.dim() == 1 else scale * numbers
    model.save_pretrained(directory)


@pytest.fixture(scope="module")
def ours(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    """Logits [batch, length, vocab] of our engine by name and layout, then by length."""
    folder = tmp_path_factory.mktemp("megatron")
    for name, source in sources.items():
        to_megatron(source, folder / name)
    words = [word for name, layout in JOBS for word in (str(folder / name), layout)]
    command = [sys.executable, "-W", "ignore", "-m", "tests.engine.logits_program", str(folder), *words]
    # The claim is about fp32 on CPUs, whatever the machine has beside them.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {(name, layout): load_file(folder / f"{name}-{layout}.safetensors") for name, layout in JOBS}


@pytest.fixture(scope="module")
def theirs(sources: dict[str, Path]) -> dict[str, dict[int, torch.Tensor]]:
    """Logits [batch, length, vocab] of transformers by name, then by length; its plain attention, which is not ours."""
    transformers = pytest.importorskip("transformers")
    load = transformers.LlamaForCausalLM.from_pretrained
    models = {name: load(source, dtype=torch.float32, attn_implementation="eager") for name, source in sources.items()}
    with torch.no_grad():
        return {name: {length: model(token_ids(length)).logits for length in LENGTHS} for name, model in models.items()}


def relative_gaps(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The largest difference of each position as a share of the largest logit there: [batch, length]."""
    return (found - expected).abs().amax(-1) / expected.abs().amax(-1)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("name", "layout"), COMPARED)
def test_logits_at_every_layout_are_those_of_transformers(
    name: str,
    layout: str,
    length: int,
    ours: dict[tuple[str, str], dict[str, torch.Tensor]],
    theirs: dict[str, dict[int, torch.Tensor]],
) -> None:
    found, expected = ours[name, layout][str(length)], theirs[name][length]
    assert found.shape == expected.shape
    assert relative_gaps(found, expected).max().item() <= TOLERANCE
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("length", LENGTHS)
def test_another_scaling_factor_is_seen_at_every_token_but_the_first(
    length: int, ours: dict[tuple[str, str], dict[str, torch.Tensor]], theirs: dict[str, dict[int, torch.Tensor]]
) -> None:
    found = ours["factor", "1x1x1"][str(length)]
    gaps = relative_gaps(found, theirs["untied"][length])
    assert gaps[:, 0].max().item() <= TOLERANCE  # it sees itself alone
    assert gaps[:, 1:].min().item() > 10 * TOLERANCE
    assert gaps[:, -1].min().item() > 100 * TOLERANCE
    assert relative_gaps(found, theirs["factor"][length]).max().item() <= TOLERANCE
