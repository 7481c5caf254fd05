"""The layer that the model is built of: Transformer Engine's where it is installed, else megatron-core's own linear layers with
our RMSNorm and scaled-dot-product attention. Both give checkpoints the same names."""

import importlib.util

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_poro.engine.cpu_kernels import rms_norm
from megatron_poro.topology import sequence_chunks

HAS_TRANSFORMER_ENGINE = importlib.util.find_spec("transformer_engine") is not None
HAS_APEX = importlib.util.find_spec("apex") is not None


def build_layer_spec(num_layers: int) -> TransformerBlockSubmodules | ModuleSpec:
    """The spec of one model chunk with `num_layers` layers."""
    if HAS_TRANSFORMER_ENGINE:
        return get_gpt_layer_with_transformer_engine_spec()
    norm = _apex_norm() if HAS_APEX else RMSNorm
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    layer.submodules.input_layernorm = norm
    layer.submodules.pre_mlp_layernorm = norm
    layer.submodules.self_attention.submodules.core_attention = ScaledDotProductAttention
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=norm)


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm; its weight is marked so that megatron-core sums its gradient over a sequence-parallel group."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.epsilon = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise over the last dimension; on a CPU in fewer passes than torch takes."""
        return rms_norm(x, self.weight, self.epsilon) if x.device.type == "cpu" else super().forward(x)


def _apex_norm() -> type[torch.nn.Module]:
    from apex.normalization import MixedFusedRMSNorm

    class ApexRMSNorm(MixedFusedRMSNorm):  # type: ignore[misc]
        """apex's fused RMSNorm, marked like ours."""

        def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
            super().__init__(hidden_size, eps=eps)
            self.weight.data = self.weight.data.to(config.params_dtype)
            self.weight.sequence_parallel = config.sequence_parallel

    return ApexRMSNorm


class ScaledDotProductAttention(MegatronModule):  # type: ignore[misc]
    """Causal grouped-query attention through torch, which reaches the flash kernels of CPU, NVIDIA and ROCm."""

    def __init__(  # noqa: PLR0913 - megatron-core passes all of these by keyword
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        *,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale
        self.shares_sequences = config.context_parallel_size > 1

    def forward(  # noqa: PLR0913 - megatron-core's signature
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """Attend: query [seq, batch, heads, dim], key and value [seq, batch, kv_heads, dim] -> [seq, batch, heads * dim].

        Packed, there is no batch axis, and each document attends to itself alone: a kernel call for each, and no mask.
        """
        if self.shares_sequences:
            return self._attend_shared(query, key, value).flatten(2)
        if packed_seq_params is None:
            return self._attend(query, key, value).flatten(2)
        lengths = packed_seq_params.cu_seqlens_q.diff().tolist()
        documents = zip(*(torch.split(x.unsqueeze(1), lengths) for x in (query, key, value)), strict=True)
        return torch.cat([self._attend(*document) for document in documents]).flatten(2)  # [tokens, 1, heads * dim]

    def _attend_shared(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """This process's two chunks of the sequence, each against all keys up to its own end, which the processes gather.

        So Llama 3 was trained (arXiv:2407.21783, 3.3.2); Transformer Engine instead passes keys around while it computes.
        """
        rank = parallel_state.get_context_parallel_rank()
        key, value = _gather_sequence(key), _gather_sequence(value)  # [all of seq, batch, kv_heads, dim]
        chunks = query.chunk(2)
        ends = [(n + 1) * len(chunks[0]) for n in sequence_chunks(rank, self.config.context_parallel_size)]
        return torch.cat([self._attend(chunk, key[:end], value[:end]) for chunk, end in zip(chunks, ends, strict=True)])

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Causal attention along the first axis, at whose end all queries are: [seq, batch, heads, dim]."""
        num_queries, num_keys = len(query), len(key)
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [batch, heads, seq, dim]
        mask = None
        if num_keys > num_queries:
            mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril(num_keys - num_queries)
        context = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=self.softmax_scale, enable_gqa=True
        )
        return context.permute(2, 0, 1, 3)


def _gather_sequence(shared: torch.Tensor) -> torch.Tensor:
    """The whole sequence [seq, ...], in order, of which each context rank holds two chunks. Every rank of a group must call it."""
    group = parallel_state.get_context_parallel_group()
    size = group.size()
    chunks = gather_from_sequence_parallel_region(shared, group=group).chunk(2 * size)
    held = [chunk for rank in range(size) for chunk in sequence_chunks(rank, size)]
    return torch.cat([chunks[held.index(n)] for n in range(2 * size)])
