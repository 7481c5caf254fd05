"""The Llama of a run file as megatron-core model chunks of this process."""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_block import get_num_layers_to_build

from megatron_poro.config import DataConfig, ModelConfig, RunConfig, head_dim
from megatron_poro.engine.cross_entropy import cross_entropy
from megatron_poro.engine.documents import document_rules
from megatron_poro.engine.layers import HAS_TRANSFORMER_ENGINE, build_layer_spec
from megatron_poro.engine.platform import Platform
from megatron_poro.engine.rope import rotary_frequencies
from megatron_poro.errors import LayoutError
from megatron_poro.topology import Layout, padded_vocab_size


class LlamaModel(GPTModel):  # type: ignore[misc]
    """megatron-core's GPT with the config's rotary frequencies, and a loss blind to the vocabulary's padding rows."""

    def __init__(self, config: TransformerConfig, model: ModelConfig, *, data: DataConfig, vp_stage: int | None) -> None:
        super().__init__(
            config=config,
            transformer_layer_spec=build_layer_spec(get_num_layers_to_build(config, vp_stage=vp_stage)),
            vocab_size=padded_vocab_size(model.vocab_size, config.tensor_model_parallel_size),
            max_sequence_length=data.sequence_length,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            share_embeddings_and_output_weights=model.tied_embeddings,
            position_embedding_type="rope",
            rotary_base=int(model.rope_theta),
            vp_stage=vp_stage,
        )
        self.rotary_pos_emb.inv_freq = rotary_frequencies(model).to(torch.cuda.current_device())
        self.num_real_tokens = model.vocab_size
        self.documents = document_rules(data)

    def _preprocess(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **settings: Any) -> tuple[Any, ...]:
        """megatron-core's, which counts positions along the sequence; ours are those of `position_ids` where documents matter."""
        decoder_input, rotary, *rest = super()._preprocess(input_ids, position_ids, **settings)
        # The fused kernel takes no positions; it starts again at every packed document, which masked attention cannot tell apart.
        if self.documents and not self.config.apply_rope_fusion:
            angles = position_ids.T[..., None] * self.rotary_pos_emb.inv_freq  # [seq, batch, dim / 2]
            rotary = torch.cat((angles, angles), dim=-1)[:, :, None]  # [seq, batch, 1, dim]
        return decoder_input, rotary, *rest

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each token: labels [batch, seq], logits [seq, batch, vocab / tensor], used up -> [batch, seq]."""
        first = parallel_state.get_tensor_model_parallel_rank() * logits.size(-1)
        num_real = min(max(self.num_real_tokens - first, 0), logits.size(-1))
        group = parallel_state.get_tensor_model_parallel_group()
        losses = cross_entropy(logits, labels.transpose(0, 1), first=first, num_real=num_real, group=group)
        return losses.transpose(0, 1).contiguous()


def build_transformer_config(config: RunConfig, layout: Layout, platform: Platform) -> TransformerConfig:
    """megatron-core's description of the model and of how it is computed; its spellings appear here alone."""
    model, bf16 = config.model, config.training.precision == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    interleaved = layout.virtual_stages > 1
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_key_value_heads,
        kv_channels=head_dim(model),
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=model.initializer_std,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_stages if interleaved else None,
        context_parallel_size=layout.context,
        sequence_parallel=config.parallel.sequence,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=bf16,
        use_cpu_initialization=platform.is_cpu,
        # With two pipeline ranks both neighbours are one process: batched sends and receives would exchange activations and
        # gradients in silence. Interleaved schedules therefore send unbatched and overlapped.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        **_recompute_settings(config.training.recompute),
        # Fused kernels come from Transformer Engine or apex extensions, or the CPU platform; without them torch's own are used.
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        apply_rope_fusion=HAS_TRANSFORMER_ENGINE and not platform.is_cpu and not _turns_by_position(config.data),
        bias_activation_fusion=True,
        bias_dropout_fusion=not platform.is_cpu,
    )


def _recompute_settings(recompute: str) -> dict[str, Any]:
    """What is computed again in the backward pass: nothing, the attention inside each layer, or each layer whole."""
    if recompute == "none":
        return {}
    if recompute == "selective":
        return {"recompute_granularity": "selective"}
    return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def _turns_by_position(data: DataConfig) -> bool:
    """Whether rotary angles follow from positions that start again, which fused kernels cannot do without masked attention."""
    return data.reset_position_ids and not data.reset_attention_mask


def check_context(layout: Layout, platform: Platform) -> None:
    """Raise LayoutError where processes cannot share sequences: on accelerators without Transformer Engine's attention.

    With it megatron-core's own path is taken, which was not run on an accelerator yet; the CPU's path is tested.
    """
    if layout.context > 1 and not HAS_TRANSFORMER_ENGINE and not platform.is_cpu:
        raise LayoutError(
            f"parallel.context ({layout.context}): on accelerators it needs Transformer Engine, which is not installed here; "
            "install it, or set parallel.context = 1 and share the model by parallel.tensor and parallel.sequence"
        )


def build_model(config: RunConfig, layout: Layout, platform: Platform) -> list[DistributedDataParallel]:
    """This process's model chunks, one per virtual stage, with random weights. Every rank must call it."""
    torch.manual_seed(config.training.seed)
    model_parallel_cuda_manual_seed(config.training.seed)
    transformer = build_transformer_config(config, layout, platform)
    stages: Sequence[int | None] = range(layout.virtual_stages) if layout.virtual_stages > 1 else [None]
    chunks = [LlamaModel(transformer, config.model, data=config.data, vp_stage=stage).to(platform.device) for stage in stages]
    wrapped = [Float16Module(transformer, chunk) if transformer.bf16 else chunk for chunk in chunks]
    overlap = not platform.is_cpu and layout.data * layout.context > 1
    data_parallel = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        overlap_grad_reduce=overlap,
        overlap_param_gather=overlap,
    )
    return [DistributedDataParallel(transformer, data_parallel, chunk, disable_bucketing=n > 0) for n, chunk in enumerate(wrapped)]


def unwrap(chunk: torch.nn.Module) -> LlamaModel:
    """The bare model inside the data-parallel and precision wrappers."""
    while not isinstance(chunk, LlamaModel):
        chunk = chunk.module  # type: ignore[assignment]
    return chunk
