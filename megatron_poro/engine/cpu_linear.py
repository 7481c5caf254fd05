"""megatron-core's tensor-parallel linear layer on a CPU: the gradient of its weight goes straight to the buffer of gradients.

megatron-core makes a tensor of each weight's gradient and adds it to a buffer that was filled with zeros before. Here the first
microbatch of a step writes over what the buffer had, and later ones add. And where MKL meets a processor of another maker, products
in fp32 are oneDNN's, which took 1/1.7 to 1/2.4 of MKL's time on an AMD EPYC with AVX-512; on Intel's MKL is the faster.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_poro.engine.cpu_collectives import all_gather, reduce_scatter

ROWS_AT_ONCE = 4096
"""Of a weight's gradient in bf16: few enough to be still in the cache when they are widened into the buffer."""


def install_cpu_linear() -> None:
    """Hand megatron-core this linear layer, and buffers of gradients that are written over."""
    import megatron.core.distributed.param_and_grad_buffer as buffers
    from megatron.core.tensor_parallel import layers

    module: Any = layers
    module.linear_with_grad_accumulation_and_async_allreduce = linear
    module.linear_with_grad_accumulation_and_async_allreduce.warned = True
    buffers._ParamAndGradBuffer.reset = _begin_step


def linear(
    input: torch.Tensor,
    weight: torch.nn.Parameter,
    bias: torch.Tensor | None,
    *,
    allreduce_dgrad: bool,
    sequence_parallel: bool,
    tp_group: dist.ProcessGroup,
    **unused: Any,
) -> torch.Tensor:
    """input [seq, batch, in] times weight [out, in] -> [seq, batch, out].

    With sequence parallelism the input is this rank's part of the sequence. Every rank of `tp_group` must call it.
    """
    if not hasattr(weight, "gradient_is_old"):  # the first step, too, writes over: adding to zeros may round differently
        weight.gradient_is_old = True  # type: ignore[attr-defined]
    function: Any = _Linear
    output: torch.Tensor = function.apply(input, weight, allreduce_dgrad, sequence_parallel, tp_group)
    return output if bias is None else output + bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, reduces: bool, is_cut: bool, group: dist.ProcessGroup) -> Any:
        ctx.save_for_backward(x)
        ctx.weight, ctx.reduces, ctx.is_cut, ctx.group = weight, reduces, is_cut, group
        whole = _gather(x, group) if is_cut else x
        return multiply(whole.flatten(0, -2), weight.t()).view(*whole.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors[0], ctx.weight
        rows = gradient.flatten(0, -2)  # [tokens, out]
        of_x = multiply(rows, weight).view(*gradient.shape[:-1], -1)
        handle = dist.all_reduce(of_x, group=ctx.group, async_op=True) if ctx.reduces else None
        whole = _gather(x, ctx.group) if ctx.is_cut else x
        of_weight = add_weight_gradient(weight, rows, whole.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        if handle is not None:
            handle.wait()
        if ctx.is_cut:
            part = torch.empty_like(x)
            reduce_scatter(part, of_x, op=dist.ReduceOp.SUM, group=ctx.group)
            of_x = part
        return of_x, of_weight, None, None, None


def _gather(part: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    whole = torch.empty(part.size(0) * group.size(), *part.shape[1:], dtype=part.dtype)
    all_gather(whole, part.contiguous(), group=group)
    return whole


def add_weight_gradient(weight: Any, gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
    """gradient [tokens, out]^T x [tokens, in] into the weight's place in the buffer; returned instead where it has none."""
    if not hasattr(weight, "main_grad"):
        return multiply(gradient.t(), x)
    is_old = weight.gradient_is_old
    weight.gradient_is_old = False
    main_grad: torch.Tensor = weight.main_grad
    if gradient.dtype == main_grad.dtype and not _prefers_onednn():
        if is_old:
            torch.mm(gradient.t(), x, out=main_grad)
        else:
            main_grad.addmm_(gradient.t(), x)
        return None
    for start in range(0, main_grad.size(0), ROWS_AT_ONCE):
        target = main_grad[start : start + ROWS_AT_ONCE]
        part = multiply(gradient[:, start : start + ROWS_AT_ONCE].t(), x)
        target.copy_(part) if is_old else target.add_(part)
    return None


def settle_gradients(parameters: Iterable[Any]) -> None:
    """Fill with zeros what a step left unwritten. To be called between the backward pass and any use of the gradients."""
    for parameter in parameters:
        if getattr(parameter, "gradient_is_old", False):
            parameter.main_grad.zero_()
            parameter.gradient_is_old = False


def _begin_step(buffer: Any) -> None:
    """Zeros for all gradients but those that the step will write over; these are marked."""
    for parameter in buffer.params:
        if hasattr(parameter, "gradient_is_old"):
            parameter.gradient_is_old = True
        else:
            parameter.main_grad.zero_()


def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [m, k] times b [k, n]."""
    if a.dtype == torch.float32 and _prefers_onednn():
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
        return product
    return a @ b


@functools.cache
def _prefers_onednn() -> bool:
    """True where torch has MKL on a processor that is not Intel's, and the private operator does what it did."""
    cpuinfo = Path("/proc/cpuinfo")
    is_intel = not cpuinfo.exists() or "GenuineIntel" in cpuinfo.read_text()
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return has_mkl and not is_intel and onednn_multiplies()


def onednn_multiplies() -> bool:
    """Whether oneDNN's linear layer, an operator that torch keeps for itself, is there and multiplies in fp32 as torch does."""
    try:
        a, b = torch.arange(12.0).view(3, 4), torch.arange(20.0).view(4, 5)  # whole numbers: the product is exact
        return torch.equal(torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], ""), a @ b)
    except (AttributeError, RuntimeError, TypeError):
        return False
