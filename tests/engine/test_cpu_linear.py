"""The linear layer's output and gradients are those of fp64, by MKL and by oneDNN; its buffer is written over, then added to."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_poro.engine import cpu_linear
from megatron_poro.engine.cpu_collectives import reduce_scatter
from megatron_poro.engine.cpu_linear import linear, onednn_multiplies, settle_gradients
from tests.engine.ranks import run_on_ranks

SEQUENCE, BATCH, IN, OUT = 32, 2, 24, 40
# Sums of 24 to 64 products in another order, as a share of the largest: a few units in the last place of fp32; in bf16 half a unit
# of its 8 bits for each of two ranks' parts and for their sum.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1.5 * 2**-8}


def numbers(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input [seq, batch, in], weight [out, in] and the output's gradient [seq, batch, out]."""
    random = torch.Generator().manual_seed(3)
    shapes = ((SEQUENCE, BATCH, IN), (OUT, IN), (SEQUENCE, BATCH, OUT))
    x, weight, gradient = (torch.randn(shape, generator=random).to(dtype) for shape in shapes)
    return x, weight, gradient


def expected(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output and the gradients of input and weight, in fp64."""
    x, weight, gradient = (tensor.double() for tensor in numbers(dtype))
    return x @ weight.t(), gradient @ weight, gradient.flatten(0, 1).t() @ x.flatten(0, 1)


def assert_near(found: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found.double(), right, rtol=0, atol=TOLERANCES[dtype] * right.abs().max().item())


def run_twice(rank: int, size: int) -> list[Any]:
    """For each type: output, the input's gradient and the weight's buffer, after one microbatch and after a second."""
    group = dist.group.WORLD
    assert group is not None
    results: list[Any] = []
    for dtype in TOLERANCES:
        x, weight, gradient = numbers(dtype)
        rows, tokens = OUT // size, SEQUENCE // size
        parameter: Any = torch.nn.Parameter(weight[rank * rows : (rank + 1) * rows].clone())
        parameter.main_grad = torch.full((rows, IN), torch.nan)
        parameter.gradient_is_old = True
        for _ in range(2):
            part = x[rank * tokens : (rank + 1) * tokens].clone().requires_grad_()
            y = linear(part, parameter, None, allreduce_dgrad=False, sequence_parallel=True, tp_group=group)
            y.backward(gradient[..., rank * rows : (rank + 1) * rows])
            assert parameter.grad is None
            results.append((y.detach(), part.grad, parameter.main_grad.clone()))
    return results


@pytest.mark.parametrize("size", [1, 2])
def test_sequence_parallel_ranks_give_the_whole_product(size: int, tmp_path: Path) -> None:
    by_rank = run_on_ranks(run_twice, size, tmp_path)
    for number, (dtype, times) in enumerate((dtype, times) for dtype in TOLERANCES for times in (1, 2)):
        output, of_x, of_weight = expected(dtype)
        assert_near(torch.cat([results[number][0] for results in by_rank], dim=-1), output, dtype)
        assert_near(torch.cat([results[number][1] for results in by_rank], dim=0), of_x, dtype)
        assert_near(torch.cat([results[number][2] for results in by_rank], dim=0), times * of_weight, dtype)


@pytest.mark.skipif(not onednn_multiplies(), reason="this torch has no such operator")
def test_onednn_gives_the_same_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "_prefers_onednn", lambda: True)
    x, weight, gradient = numbers(torch.float32)
    parameter: Any = torch.nn.Parameter(weight)
    parameter.main_grad = torch.zeros(OUT, IN)
    leaf = x.clone().requires_grad_()
    y = linear(leaf, parameter, None, allreduce_dgrad=False, sequence_parallel=False, tp_group=None)  # type: ignore[arg-type]
    y.backward(gradient)
    assert leaf.grad is not None
    for found, right in zip((y.detach(), leaf.grad, parameter.main_grad), expected(torch.float32), strict=True):
        assert_near(found, right, torch.float32)


def test_a_weight_without_a_buffer_gets_its_gradient() -> None:
    x, weight, gradient = numbers(torch.float32)
    parameter = torch.nn.Parameter(weight)
    linear(x, parameter, None, allreduce_dgrad=False, sequence_parallel=False, tp_group=None).backward(gradient)  # type: ignore[arg-type]
    assert parameter.grad is not None
    assert_near(parameter.grad, expected(torch.float32)[2], torch.float32)


def test_what_a_step_left_unwritten_is_zero() -> None:
    left: Any = torch.nn.Parameter(torch.ones(2))
    written: Any = torch.nn.Parameter(torch.ones(2))
    left.main_grad, left.gradient_is_old = torch.ones(2), True
    written.main_grad, written.gradient_is_old = torch.ones(2), False
    settle_gradients([left, written])
    assert left.main_grad.tolist() == [0, 0]
    assert written.main_grad.tolist() == [1, 1]


def test_a_sum_is_all_that_reduce_scatter_does() -> None:
    with pytest.raises(ValueError, match="only a sum"):
        reduce_scatter(torch.ones(1), torch.ones(1), op=dist.ReduceOp.MAX, group=None)  # type: ignore[arg-type]
