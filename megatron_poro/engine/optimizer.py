"""megatron-core's distributed optimizer for the model chunks of this process."""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

from megatron_poro.config import RunConfig
from megatron_poro.engine.adam import FusedAdam, provide_fused_adam
from megatron_poro.engine.cpu_linear import settle_gradients
from megatron_poro.engine.phases import Phase, enter


def build_optimizer(config: RunConfig, chunks: Sequence[DistributedDataParallel]) -> MegatronOptimizer:
    """AdamW with its state sharded over the data axis, made known to the chunks' config. Every rank must call it."""
    provide_fused_adam()
    ours, bf16 = config.optimizer, config.training.precision == "bf16"
    overlap = chunks[0].ddp_config.overlap_param_gather
    optimizer = get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=ours.learning_rate,
            min_lr=ours.final_learning_rate,
            weight_decay=ours.weight_decay,
            adam_beta1=ours.adam_beta1,
            adam_beta2=ours.adam_beta2,
            adam_eps=ours.adam_epsilon,
            clip_grad=ours.clip_gradient_norm,
            bf16=bf16,
            params_dtype=torch.bfloat16 if bf16 else torch.float32,
            use_distributed_optimizer=True,
            overlap_param_gather=overlap,
        ),
        list(chunks),
        use_gloo_process_groups=False,
    )
    for part in optimizer.chained_optimizers:
        part.init_state_fn(part.optimizer, part.config)  # moments exist from the start, so a run can be saved before its first step
    transformer = chunks[0].config
    transformer.grad_scale_func = optimizer.scale_loss
    transformer.finalize_model_grads_func = _finalize_gradients
    if chunks[0].ddp_config.overlap_grad_reduce:
        transformer.no_sync_func = [chunk.no_sync for chunk in chunks] if len(chunks) > 1 else chunks[0].no_sync
    return optimizer


def _finalize_gradients(chunks: Sequence[DistributedDataParallel], *args: Any, **kwargs: Any) -> None:
    enter(Phase.GRADIENTS)
    for chunk in chunks:
        settle_gradients(chunk.parameters())
    finalize_model_grads(chunks, *args, **kwargs)


def set_learning_rate(optimizer: MegatronOptimizer, rate: float, weight_decay: float) -> None:
    """Set what the next step uses; groups that are not decayed (norms) carry a multiplier of 0."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)


def prepare_update(optimizer: MegatronOptimizer) -> float:
    """The norm of all gradients, which are then ready for `update`. Every rank must call it."""
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())


def update(optimizer: MegatronOptimizer, gradient_norm: float) -> None:
    """Clip the prepared gradients by their norm and update the weights: megatron-core's `step` after its first part."""
    for part in optimizer.chained_optimizers:
        parameters, largest = part.get_parameters(), part.config.clip_grad
        if not parameters or largest == 0.0:
            continue
        if isinstance(part.optimizer, FusedAdam):
            part.optimizer.divisor = max(1.0, (gradient_norm + 1e-6) / largest)
        else:
            clip_grad_by_total_norm_fp32(parameters, max_norm=largest, total_norm=gradient_norm)
    optimizer.step_with_ready_grads()
