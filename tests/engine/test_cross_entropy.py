"""The loss and its gradient are torch's, on one rank and on two, with and without padding rows."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional

from megatron_poro.engine import cross_entropy as module
from megatron_poro.engine.cross_entropy import cross_entropy
from tests.engine.ranks import run_on_ranks

SEQUENCE, BATCH, COLUMNS = 37, 2, 48
VOCABULARIES = {1: (48, 41), 2: (96, 83, 40)}
"""By ranks: no padding, some, and for two ranks a second one that has nothing else."""


@pytest.fixture(autouse=True)
def _several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_NUMBERS_AT_ONCE", 5 * COLUMNS)


def numbers(vocabulary: int, padded: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [seq, batch, padded] whose padding columns are large, labels and gradients [seq, batch]."""
    random = torch.Generator().manual_seed(vocabulary)
    logits = 4 * torch.randn(SEQUENCE, BATCH, padded, generator=random)
    logits[..., vocabulary:] = 50.0
    labels = torch.randint(vocabulary, (SEQUENCE, BATCH), generator=random)
    return logits.to(dtype), labels, torch.rand(SEQUENCE, BATCH, generator=random)


def ours(rank: int, size: int, vocabulary: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [seq, batch] and this rank's part of the gradient [seq, batch, columns]."""
    logits, labels, gradients = numbers(vocabulary, COLUMNS * size, dtype)
    part = logits[..., rank * COLUMNS : (rank + 1) * COLUMNS].clone().requires_grad_()
    num_real = min(max(vocabulary - rank * COLUMNS, 0), COLUMNS)
    assert dist.group.WORLD is not None
    # The output layer stands between the leaf and the loss, which uses its input up.
    losses = cross_entropy(part * 1, labels, first=rank * COLUMNS, num_real=num_real, group=dist.group.WORLD)
    losses.backward(gradients)
    assert part.grad is not None
    return losses.detach(), part.grad


def theirs(vocabulary: int, padded: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in fp64 by torch, without the padding columns' part."""
    logits, labels, gradients = numbers(vocabulary, padded, dtype)
    leaf = logits.double().requires_grad_()
    losses = functional.cross_entropy(leaf[..., :vocabulary].flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    losses.backward(gradients.double())
    assert leaf.grad is not None
    return losses.detach(), leaf.grad


def every_case(rank: int, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [ours(rank, size, vocabulary, dtype) for vocabulary in VOCABULARIES[size] for dtype in (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize("size", [1, 2])
def test_loss_and_gradient_are_those_of_torch_in_fp64(size: int, tmp_path: Path) -> None:
    by_rank = run_on_ranks(every_case, size, tmp_path)
    cases = [(vocabulary, dtype) for vocabulary in VOCABULARIES[size] for dtype in (torch.float32, torch.bfloat16)]
    for number, (vocabulary, dtype) in enumerate(cases):
        losses, gradient = theirs(vocabulary, COLUMNS * size, dtype)
        for rank in range(size):
            # fp32 of numbers up to 20: a few units in the last place of 20
            torch.testing.assert_close(by_rank[rank][number][0].double(), losses, rtol=0, atol=1e-5)
        found = torch.cat([by_rank[rank][number][1] for rank in range(size)], dim=-1)
        assert found.dtype == dtype
        # gradients are at most 1: fp32 to 2e-6, bf16 to half a unit of its 8 bits
        relative, absolute = (2e-5, 1e-7) if dtype == torch.float32 else (2**-8, 1e-7)
        torch.testing.assert_close(found.double(), gradient, rtol=relative, atol=absolute)
        assert found[..., vocabulary:].count_nonzero() == 0
