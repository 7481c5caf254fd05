"""Documents within a sequence: attention that ends at their borders, positions that start again at them.

Every pipeline stage reads a microbatch's tokens anyway, so each finds the borders itself: a document ends with its end-of-document
token. With attention masked, a microbatch runs as megatron-core's packed sequences: its rows behind each other as one row, with the
places where documents start. No mask is ever built, and no attention score between two documents is computed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.utils import get_batch_on_this_cp_rank

from megatron_poro.config import DataConfig
from megatron_poro.data.borders import NO_EOD, document_positions, document_starts
from megatron_poro.engine.layers import HAS_TRANSFORMER_ENGINE

Tokens = np.ndarray[Any, np.dtype[np.integer[Any]]]


@dataclass(frozen=True)
class DocumentRules:
    """What happens at a document's border: whether attention ends there, and whether positions start again."""

    eod_token_id: int
    mask_attention: bool
    reset_positions: bool


@dataclass(frozen=True)
class ModelInputs:
    """A microbatch as the model takes it: tokens, labels and positions [rows, seq]; packed, all its tokens are one row.

    Everything lies on the model's device; `packed` is None unless attention ends at documents.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    packed: PackedSeqParams | None = None


def document_rules(data: DataConfig) -> DocumentRules | None:
    """The rules of a run whose end-of-document token is known; None where documents do not matter."""
    if not (data.reset_attention_mask or data.reset_position_ids):
        return None
    if data.eod_token_id == NO_EOD:
        raise ValueError("the end-of-document token was not looked up")
    return DocumentRules(data.eod_token_id, data.reset_attention_mask, data.reset_position_ids)


def schedule_shape(rows: Tokens, rules: DocumentRules | None) -> tuple[int, int]:
    """Sequence length and micro-batch size that the pipeline schedule is told for token ids [batch, seq + 1]."""
    batch, length = rows.shape[0], rows.shape[1] - 1
    return (batch * length, 1) if rules and rules.mask_attention else (length, batch)


def model_inputs(rows: Tokens, rules: DocumentRules | None, device: torch.device) -> ModelInputs:
    """The inputs of token ids [batch, seq + 1] on `device`: of each sequence, the part that this rank holds."""
    # The files' narrow type travels to the device and is widened there.
    tokens = torch.from_numpy(rows).to(device).long()  # [batch, seq + 1]
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    batch, length = inputs.shape
    if rules is None:
        return ModelInputs(*_own_chunks(inputs, labels, torch.arange(length, device=device)[None]))
    starts = document_starts(rows[:, :-1], rules.eod_token_id)
    row_starts = np.arange(batch + 1) * length
    numbers = document_positions(starts if rules.reset_positions else row_starts)
    positions = torch.from_numpy(numbers).view(batch, length).to(device)
    if not rules.mask_attention:
        return ModelInputs(*_own_chunks(inputs, labels, positions))
    # Transformer Engine's kernels read the borders; our attention loops over them on the host.
    borders = torch.from_numpy(starts).to(device if HAS_TRANSFORMER_ENGINE else "cpu", torch.int32)
    # The longest document may be as long as a row. A number that changed with the batch would make kernels plan anew for each.
    packed = PackedSeqParams("thd", borders, borders, max_seqlen_q=length, max_seqlen_kv=length)
    return ModelInputs(inputs.view(1, -1), labels.view(1, -1), positions.view(1, -1), packed)


def _own_chunks(*whole: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The chunks of sequences [batch, seq] that this rank's place on the context axis holds: all of them without such an axis."""
    return tuple(get_batch_on_this_cp_rank(dict(enumerate(whole))).values())
