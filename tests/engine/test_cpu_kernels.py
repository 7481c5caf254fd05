"""What the CPU computes in few passes is what torch's autograd gives, forward and backward."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from megatron_poro.engine.cpu_kernels import rms_norm, rotate, swiglu

# Sums of up to 64 numbers of about 1 in another order: a few units in the last place of fp32, and one of bf16's 8 bits for each of
# the two roundings at the ends.
TOLERANCES = {torch.float32: (2e-5, 2e-6), torch.bfloat16: (2**-6, 2**-6)}
Function = Callable[..., torch.Tensor]


def results(function: Function, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output and every input's gradient, for a random gradient of the output."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    random = torch.Generator().manual_seed(5)
    output.backward(torch.randn(output.shape, generator=random).to(output.dtype))
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def check(ours: Function, theirs: Function, *shapes: tuple[int, ...], dtype: torch.dtype) -> None:
    """Ours in `dtype` against theirs in fp64, on the same numbers."""
    random = torch.Generator().manual_seed(3)
    inputs = [torch.randn(shape, generator=random).to(dtype) for shape in shapes]
    found, expected = results(ours, inputs), results(theirs, [x.double() for x in inputs])
    relative, absolute = TOLERANCES[dtype]
    assert len(found) == len(expected) == len(shapes) + 1
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=relative, atol=absolute * b.abs().max().item())


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_rms_norm(dtype: torch.dtype) -> None:
    check(
        lambda x, weight: rms_norm(x, weight, 1e-5),
        lambda x, weight: functional.rms_norm(x, (64,), weight, 1e-5),
        (11, 2, 64),
        (64,),
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_swiglu(dtype: torch.dtype) -> None:
    def plain(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return functional.silu(gate) * up

    check(swiglu, plain, (11, 2, 64), dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_rotary_positions(dtype: torch.dtype) -> None:
    half = torch.outer(torch.arange(11.0), 10.0 ** -torch.arange(8.0))  # [seq, dim / 2]
    angles = torch.cat([half, half], dim=-1)[:, None, None, :]

    def plain(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * angles.double().cos() + torch.cat([-second, first], dim=-1) * angles.double().sin()

    check(lambda x: rotate(x, angles), plain, (11, 2, 3, 16), dtype=dtype)
