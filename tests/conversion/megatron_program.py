"""What unmodified megatron-core does with checkpoints of ours: load them strictly in any layout, compute, save again.

    python -m tests.conversion.megatron_program OUT CHECKPOINT TENSORxPIPELINE [CHECKPOINT TENSORxPIPELINE ...]

Each pair loads CHECKPOINT with RAISE_ALL and saves it to OUT/TENSORxPIPELINE; 1x1 also writes OUT/logits.pt.
Ranks are forked from one process, so that megatron-core is imported once.
"""

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from megatron_poro.config import ModelConfig

TOKENS = [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315]


def main(out: str, *pairs: str) -> None:
    """Run each pair on its own gloo processes."""
    from megatron_poro.engine.platform import install_cpu_platform

    install_cpu_platform()
    import megatron.core.dist_checkpointing
    import megatron.core.models.gpt  # noqa: F401

    for checkpoint, layout in zip(pairs[::2], pairs[1::2], strict=True):
        run_layout(checkpoint, layout, Path(out))


def run_layout(checkpoint: str, layout: str, out: Path) -> None:
    """Fork the ranks of one layout and wait for them."""
    tensor, pipeline = map(int, layout.split("x"))
    (out / layout).mkdir(parents=True)
    fork = multiprocessing.get_context("fork")
    arguments = [(rank, tensor, pipeline, checkpoint, out / layout) for rank in range(tensor * pipeline)]
    jobs = [fork.Process(target=run_rank, args=each) for each in arguments]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    if any(job.exitcode for job in jobs):
        sys.exit(f"{layout} failed")


def run_rank(rank: int, tensor: int, pipeline: int, checkpoint: str, target: Path) -> None:
    """One process of a layout."""
    import torch
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing.validation import StrictHandling

    from megatron_poro.conversion import read_model_file

    torch.set_num_threads(1)
    size = tensor * pipeline
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size))
    rendezvous = f"file://{target}.rendezvous"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
    parallel_state.initialize_model_parallel(tensor, pipeline)
    model = build_gpt(read_model_file(Path(checkpoint))[0])
    state = dist_checkpointing.load(weights_of(model), checkpoint, strict=StrictHandling.RAISE_ALL)
    model.load_state_dict(state, strict=True)
    if size == 1:
        torch.save(compute_logits(model), target.parent / "logits.pt")
    dist_checkpointing.save(model.sharded_state_dict(), str(target))
    torch.distributed.barrier()


def weights_of(model: Any) -> dict[str, Any]:
    """The sharded state without `_extra_state`, which is None outside FP8 and differs between layer implementations."""
    return {name: shard for name, shard in model.sharded_state_dict().items() if not name.endswith("_extra_state")}


def build_gpt(model: ModelConfig) -> Any:
    """megatron-core's GPTModel with its own local layers and random weights."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer import TransformerConfig

    from megatron_poro.topology import padded_vocab_size

    model_parallel_cuda_manual_seed(7)
    tensor = parallel_state.get_tensor_model_parallel_world_size()
    config = TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_key_value_heads,
        kv_channels=model.head_dim or None,
        layernorm_epsilon=model.norm_epsilon,
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        pipeline_dtype=torch.float32,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )
    return GPTModel(
        config,
        get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=padded_vocab_size(model.vocab_size, tensor),
        max_sequence_length=64,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=model.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=int(model.rope_theta),
    )


def compute_logits(model: Any) -> Any:
    """Logits of `TOKENS`, [seq, vocab]."""
    import torch

    tokens = torch.tensor([TOKENS])  # [batch, seq]
    positions = torch.arange(len(TOKENS))[None]
    mask = torch.ones(len(TOKENS), len(TOKENS), dtype=torch.bool).triu(1)[None, None]  # True where attention is forbidden
    with torch.no_grad():
        return model(tokens, positions, mask)[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
