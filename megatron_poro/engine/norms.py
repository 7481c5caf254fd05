"""The norm of all weights of the model, each counted once whatever the layout."""

import math
from collections.abc import Sequence

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel

from megatron_poro.engine.fingerprint import fetch_weights
from megatron_poro.engine.groups import sum_over_world


@torch.no_grad()
def parameter_norm(chunks: Sequence[DistributedDataParallel]) -> float:
    """Root of the sum of squares of the weights that the model computes with. Every rank must call it."""
    fetch_weights(chunks)
    parameters = [parameter for chunk in chunks for parameter in chunk.parameters() if _counts_here(parameter)]
    total = torch.zeros((), dtype=torch.float64, device=next(chunks[0].parameters()).device)
    for parameter in parameters:
        total += torch.linalg.vector_norm(parameter.detach(), dtype=torch.float64).square()
    return math.sqrt(sum_over_world(total).item())


def _counts_here(parameter: torch.nn.Parameter) -> bool:
    """Whether this rank is the one that counts a weight: not a copy on a data rank, nor of a norm, nor of a tied embedding."""
    if parallel_state.get_data_parallel_rank(with_context_parallel=True) or getattr(parameter, "shared", False):
        return False
    is_cut = getattr(parameter, "tensor_model_parallel", False)
    return is_cut or parallel_state.get_tensor_model_parallel_rank() == 0
