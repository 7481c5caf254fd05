"""Cross-entropy over a vocabulary that is cut over the tensor ranks, without copies of the logits.

megatron-core's makes several of them in fp32; logits are the largest activation there is (4 GB in fp32 for 8,192 tokens of Llama
3.1 8B). Here the logits stay as the output layer made them. A few tokens at a time are widened to fp32, and in the backward pass
the gradient takes the logits' place.
"""

from typing import Any

import torch
import torch.distributed as dist

CPU_NUMBERS_AT_ONCE = 2**18
"""What fits the nearest caches of a core, in fp32."""
DEVICE_NUMBERS_AT_ONCE = 2**27
"""Few enough that fp32 copies of them are small (0.5 GB), enough to keep an accelerator busy."""


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, *, first: int, num_real: int, group: dist.ProcessGroup
) -> torch.Tensor:
    """Loss of each token in nats, fp32 [seq, batch], from logits [seq, batch, vocab / tensor] and labels [seq, batch].

    `first` is the token id of this rank's first column; columns from `num_real` on are padding and take no part. The logits are
    used up: the backward pass writes their gradient over them. Every rank of `group` must call it.
    """
    function: Any = _CrossEntropy
    losses: torch.Tensor = function.apply(logits, labels, first, num_real, group)
    return losses


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, first: int, num_real: int, group: dist.ProcessGroup) -> Any:
        flat = logits.reshape(-1, logits.size(-1))  # [tokens, vocab / tensor]
        columns = labels.reshape(-1, 1) - first  # [tokens, 1]
        is_here = (columns >= 0) & (columns < num_real)
        columns = columns.clamp(0, max(num_real - 1, 0))
        own = torch.where(is_here, flat.gather(1, columns).float(), 0.0).squeeze(1)  # the label's logit, on its rank alone
        total, own = _sum_over_group(_log_sum_exp(flat, num_real), own, group)
        ctx.save_for_backward(columns, is_here, total)
        ctx.logits, ctx.num_real = flat, num_real
        return (total - own).view(labels.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradients: torch.Tensor) -> Any:
        columns, is_here, total = ctx.saved_tensors
        flat, num_real = ctx.logits, ctx.num_real
        del ctx.logits  # no second time: these are no logits any more
        scale = gradients.reshape(-1, 1).float()  # [tokens, 1]
        for rows in _few_rows(flat):
            part = flat[rows, :num_real]
            probabilities = part.float().sub_(total[rows, None]).exp_()
            if num_real:
                probabilities.scatter_add_(1, columns[rows], -is_here[rows].float())
            part.copy_(probabilities.mul_(scale[rows]))
        flat[:, num_real:] = 0
        return flat.view(*gradients.shape, -1), None, None, None, None


def _few_rows(flat: torch.Tensor) -> list[slice]:
    numbers = CPU_NUMBERS_AT_ONCE * torch.get_num_threads() if flat.device.type == "cpu" else DEVICE_NUMBERS_AT_ONCE
    step = max(1, numbers // flat.size(1))
    return [slice(start, start + step) for start in range(0, flat.size(0), step)]


def _log_sum_exp(flat: torch.Tensor, num_real: int) -> torch.Tensor:
    """Of this rank's real columns: fp32 [tokens], minus infinity where it has none."""
    if num_real <= 0:
        return torch.full((flat.size(0),), -torch.inf, device=flat.device)
    return torch.cat([torch.logsumexp(flat[rows, :num_real].float(), dim=1) for rows in _few_rows(flat)])


def _sum_over_group(sums: torch.Tensor, own: torch.Tensor, group: dist.ProcessGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """The log of the sum of exponentials over all columns of all ranks, and the label's logit: each [tokens]."""
    if group.size() == 1:
        return sums, own
    largest = sums.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    both = torch.stack([(sums - largest).exp(), own])  # [2, tokens]
    dist.all_reduce(both, group=group)
    return both[0].log() + largest, both[1]
