"""Documents of one sequence do not see each other: every token's loss is that of its document alone, in transformers."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megatron_poro.conversion import to_megatron
from megatron_poro.data import document_positions, document_starts
from tests.engine.documents_program import EOD, LENGTH, rows
from tests.engine.test_logits import save_llama
from tests.runs import REPOSITORY

# A loss is a difference of two sums over the vocabulary, near 6: 2e-5 are 40 units of fp32's last place there, as in test_logits.
TOLERANCE = 2e-5
LAYOUTS = ("1x1x1", "2x1x1", "1x2x2", "2x2x1+sequence", "2x2x2+sequence+recompute")
MASKED = [f"{layout}+mask{positions}" for layout in LAYOUTS for positions in ("", "+positions")]
UNMASKED = ["1x1x1", "1x1x1+positions", "2x2x2+sequence+recompute+positions"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("huggingface")
    save_llama(folder / "llama", tied=False)
    return folder / "llama"


@pytest.fixture(scope="module")
def ours(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The engine's losses [batch, seq] by job."""
    folder, jobs = tmp_path_factory.mktemp("megatron"), [*MASKED, *UNMASKED]
    to_megatron(model, folder / "start")
    command = [sys.executable, "-W", "ignore", "-m", "tests.engine.documents_program", str(folder), str(folder / "start"), *jobs]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {job: load_file(folder / f"{job}.safetensors")["losses"] for job in jobs}


@pytest.fixture(scope="module")
def theirs(model: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Losses [tokens] of logits [tokens, vocab]."""
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


@torch.no_grad()
def documents_alone(theirs: Any) -> torch.Tensor:
    """transformers' losses [batch, seq], every document in a forward pass of its own."""
    tokens = torch.from_numpy(rows()).long()
    inputs, labels = tokens[:, :-1].flatten(), tokens[:, 1:].flatten()
    starts = document_starts(rows()[:, :-1], EOD).tolist()
    spans = [slice(start, end) for start, end in pairwise(starts)]
    return torch.cat([token_losses(theirs(inputs[span][None]).logits[0], labels[span]) for span in spans]).view(-1, LENGTH)


@torch.no_grad()
def whole_rows(theirs: Any, positions: torch.Tensor) -> torch.Tensor:
    """transformers' losses [batch, seq] with attention over the whole row and the given positions [batch, seq]."""
    tokens = torch.from_numpy(rows()).long()
    mask = torch.ones_like(tokens[:, 1:])  # without it, transformers takes positions that start again for documents to mask
    logits = theirs(tokens[:, :-1], position_ids=positions, attention_mask=mask).logits
    return token_losses(logits.flatten(0, 1), tokens[:, 1:].flatten()).view(-1, LENGTH)


@pytest.mark.parametrize("job", MASKED)
def test_with_attention_masked_every_loss_is_that_of_the_document_alone(
    job: str, ours: dict[str, torch.Tensor], theirs: Any
) -> None:
    torch.testing.assert_close(ours[job], documents_alone(theirs), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("job", UNMASKED)
def test_positions_alone_start_again_and_attention_does_not(job: str, ours: dict[str, torch.Tensor], theirs: Any) -> None:
    starts = document_starts(rows()[:, :-1], EOD)
    numbers = document_positions(starts) if "positions" in job else np.tile(np.arange(LENGTH), len(rows()))
    expected = whole_rows(theirs, torch.from_numpy(numbers).view(-1, LENGTH))
    torch.testing.assert_close(ours[job], expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_each_of_the_two_keys_changes_losses(ours: dict[str, torch.Tensor]) -> None:
    plain = ours["1x1x1"]
    for job in ("1x1x1+mask", "1x1x1+positions"):
        differs = (ours[job] - plain).abs() > 100 * TOLERANCE
        assert not differs[0].any()  # its row is one document
        assert differs[4, 45:].all()
    assert torch.allclose(ours["1x1x1+mask"], ours["1x1x1+mask+positions"], rtol=TOLERANCE)  # rope sees differences alone
