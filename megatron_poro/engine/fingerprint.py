"""An exact hash of the weights that this rank holds: equal copies have equal hashes, and one flipped bit changes it for certain.

The raw bits are read as integers, each is multiplied by an odd number of its place, and all are summed modulo 2^64: sums of
integers do not depend on the order in which a device takes them.
"""

from collections.abc import Sequence

import torch
from megatron.core.distributed import DistributedDataParallel

BLOCK = 2**22
"""Numbers hashed at a time: 64 MB of integers on the device."""
PLACE_FACTOR = 6364136223846793005  # odd, as Knuth's MMIX generator has it
BLOCK_FACTOR = 1442695040888963407  # odd


@torch.no_grad()
def hash_weights(chunks: Sequence[DistributedDataParallel]) -> torch.Tensor:
    """int64 [2]: the hash of all weights of this rank, and of those that all ranks of its tensor group hold.

    Every rank must call it.
    """
    fetch_weights(chunks)
    parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
    shared = [parameter for parameter in parameters if not getattr(parameter, "tensor_model_parallel", False)]
    return torch.stack([hash_tensors(parameters), hash_tensors(shared)])


def fetch_weights(chunks: Sequence[DistributedDataParallel]) -> None:
    """Wait for weights that are still to come from other ranks. Every rank must call it."""
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def hash_tensors(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The hash of several tensors in this order, int64 [], on their device."""
    device = tensors[0].device if tensors else torch.device("cpu")
    longest = min(BLOCK, max((tensor.numel() for tensor in tensors), default=0))
    places = torch.arange(longest, dtype=torch.int64, device=device).mul_(PLACE_FACTOR).bitwise_or_(1)
    total = torch.zeros((), dtype=torch.int64, device=device)
    for tensor in tensors:
        for block in torch.split(_bits(tensor), BLOCK):
            total = total * BLOCK_FACTOR + (block * places[: block.numel()]).sum()
    return total


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The raw bits as a flat integer tensor, eight bytes a number where that fits; no copy of a contiguous tensor."""
    flat = tensor.detach().contiguous().view(-1)
    size = flat.element_size()
    if flat.numel() * size % 8 == 0 and flat.storage_offset() * size % 8 == 0:
        return flat.view(torch.int64)
    return flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
