"""Parts of the model in fewer passes over memory, for the CPU platform alone.

megatron-core leaves these to fused kernels of an accelerator and else to torch's autograd, which makes an intermediate result of
every operation. Each function here keeps its inputs alone for the backward pass and writes where the result is wanted.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional


def install_cpu_kernels() -> None:
    """Hand megatron-core these functions in place of the fused ones that it would import for an accelerator."""
    from megatron.core.transformer import attention, mlp

    modules: Any = mlp
    modules.bias_swiglu_impl = _where_it_fits(swiglu, _has_no_bias, mlp.bias_swiglu_impl)
    modules = attention
    modules.apply_rotary_pos_emb = _where_it_fits(rotate, _are_whole_heads, attention.apply_rotary_pos_emb)


def _where_it_fits(ours: Callable[..., Any], fits: Callable[..., bool], general: Callable[..., Any]) -> Callable[..., Any]:
    def choose(*args: Any, **settings: Any) -> Any:
        return (ours if fits(*args, **settings) else general)(*args, **settings)

    return choose


def _has_no_bias(x: torch.Tensor, bias: torch.Tensor | None, *unused: Any) -> bool:
    return bias is None


def _are_whole_heads(x: torch.Tensor, angles: torch.Tensor, *unused: Any, **settings: Any) -> bool:
    config = settings["config"]
    whole = angles.size(-1) == x.size(-1) and not config.rotary_interleaved and not config.multi_latent_attention
    return whole and settings.get("cu_seqlens") is None and settings.get("mscale", 1.0) == 1.0


def _apply(function: Any, *args: Any) -> torch.Tensor:
    result: torch.Tensor = function.apply(*args)
    return result


def swiglu(x: torch.Tensor, bias: None = None, *unused: bool) -> torch.Tensor:
    """silu(gate) * up of x [..., 2 * ffn], gate first: [..., ffn]. There is no bias."""
    return _apply(_SwiGLU, x)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, dim=-1)
        y: torch.Tensor = functional.silu(gate).mul_(up)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = ctx.saved_tensors[0]
        gate, up = x.chunk(2, dim=-1)
        result = torch.empty_like(x)
        of_gate, of_up = result.chunk(2, dim=-1)
        torch.mul(functional.silu(gate), gradient, out=of_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=of_gate)
        return result


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, in fp32 inside (Zhang and Sennrich 2019)."""
    return _apply(_RMSNorm, x, weight, epsilon)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norms.square_().div_(x.size(-1)).add_(epsilon).rsqrt_()  # [..., 1]
        ctx.save_for_backward(x, weight, scale)
        y: torch.Tensor = (x * scale).mul_(weight).to(x.dtype)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        x, weight, scale = ctx.saved_tensors
        unit = (x * scale).flatten(0, -2)  # fp32 [tokens, width]
        gradient = gradient.flatten(0, -2).float()
        of_weight = (gradient * unit).sum(dim=0).to(weight.dtype)
        of_unit = gradient * weight
        shares = torch.linalg.vecdot(of_unit, unit).div_(x.size(-1)).neg_()[:, None]
        of_x = of_unit.addcmul_(unit, shares).mul_(scale.flatten(0, -2))
        return of_x.view(x.shape).to(x.dtype), of_weight, None


def rotate(x: torch.Tensor, angles: torch.Tensor, *unused: Any, **settings: Any) -> torch.Tensor:
    """Rotary positions by halves: x [seq, batch, heads, dim], angles [seq, 1, 1, dim]."""
    cosine, sine = _cosine_and_sine(angles, x.dtype)
    return _apply(_Rotation, x, cosine, sine)


def _cosine_and_sine(angles: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Both of the angles' first half, made once: megatron-core keeps one tensor of angles for all steps."""
    kept: tuple[torch.Tensor, torch.Tensor] | None = getattr(angles, "cosine_and_sine", None)
    if kept is None or kept[0].dtype != dtype:
        half = angles[..., : angles.size(-1) // 2]
        kept = half.cos().to(dtype), half.sin().to(dtype)
        angles.cosine_and_sine = kept  # type: ignore[attr-defined]
    return kept


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turn(x, cosine, sine, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        cosine, sine = ctx.saved_tensors
        return _turn(gradient, cosine, sine, -1), None, None


def _turn(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, sign: int) -> torch.Tensor:
    y = torch.empty(x.shape, dtype=x.dtype)
    (x1, x2), (y1, y2) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
    torch.mul(x1, cosine, out=y1).addcmul_(x2, sine, value=-sign)
    torch.mul(x2, cosine, out=y2).addcmul_(x1, sine, value=sign)
    return y
