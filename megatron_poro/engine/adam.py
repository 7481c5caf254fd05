"""AdamW on torch's fused kernel, with the contract that megatron-core's distributed optimizer expects.

megatron-core takes FusedAdam from Transformer Engine or apex, which keep one step count per parameter group. Without them it falls
back to torch's AdamW, which keeps a step tensor per parameter; its checkpoints then lose or share those tensors, and a resumed run
drifts. This class keeps the step in the group as FusedAdam does, and runs on CPU, CUDA and ROCm.
"""

from collections.abc import Callable
from typing import Any

import torch


class FusedAdam(torch.optim.Optimizer):
    """Decoupled-weight-decay Adam (Loshchilov and Hutter 2019); `step` stands in each parameter group.

    `settings`: lr, weight_decay, betas, eps, each as torch.optim.AdamW has it. The next step divides the gradients by `divisor`:
    clipping there costs no pass of its own over them.
    """

    divisor = 1.0

    def __init__(self, params: Any, *, adam_w_mode: bool = True, **settings: Any) -> None:
        if not adam_w_mode:
            raise ValueError("only decoupled weight decay is supported")
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            group["step"] = int(group.get("step", 0)) + 1
            params = [p for p in group["params"] if p.grad is not None and p.numel() > 0]
            if params:
                self._update(group, params)
        self.divisor = 1.0

    def _update(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        for param in params:
            if not self.state[param]:
                self.state[param] = {"exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}
        step = torch.tensor(float(group["step"]), device=params[0].device)
        beta1, beta2 = group["betas"]
        torch._fused_adamw_(
            params,
            [param.grad for param in params if param.grad is not None],
            [self.state[param]["exp_avg"] for param in params],
            [self.state[param]["exp_avg_sq"] for param in params],
            [],
            [step] * len(params),
            lr=float(group["lr"]),
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=torch.tensor(self.divisor, device=params[0].device) if self.divisor != 1.0 else None,
        )


def provide_fused_adam() -> None:
    """Give megatron-core this FusedAdam where neither Transformer Engine's nor apex's is installed."""
    import megatron.core.optimizer as builder
    import megatron.core.optimizer.distrib_optimizer as distributed

    modules: tuple[Any, Any] = (builder, distributed)
    if distributed.HAVE_APEX_OR_TE:
        return
    for module in modules:
        module.Adam = FusedAdam
    builder.USING_PYTORCH_OPTIMIZER = False
    distributed.HAVE_APEX_OR_TE = distributed.USING_APEX_OPTIMIZER = True
