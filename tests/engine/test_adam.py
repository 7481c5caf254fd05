import copy

import torch

from megatron_poro.engine.adam import FusedAdam


def test_it_computes_what_torch_adamw_computes() -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(7, 3)), torch.nn.Parameter(torch.randn(5))]
    theirs = copy.deepcopy(ours)
    settings = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    mine, reference = FusedAdam(ours, **settings), torch.optim.AdamW(theirs, **settings)  # type: ignore[arg-type]
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        # two orders of the same fp32 operations over five steps: a few ulp
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)


def test_the_step_stands_in_the_group_and_survives_a_save() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = FusedAdam([weight], lr=1e-2, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8)
    weight.grad = torch.ones(3)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["param_groups"][0]["step"] == 1
    assert set(saved["state"][0]) == {"exp_avg", "exp_avg_sq"}
    restored = FusedAdam([weight], lr=1e-2, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8)
    restored.load_state_dict(saved)
    restored.step()
    assert restored.param_groups[0]["step"] == 2


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    FusedAdam([weight], lr=1.0, weight_decay=0.5, betas=(0.9, 0.95), eps=1e-8).step()
    assert torch.equal(weight, torch.ones(3))


def test_the_divisor_holds_for_one_step() -> None:
    gradients = [torch.tensor([3.0, -4.0]), torch.tensor([1.0, 2.0])]
    ours = torch.nn.Parameter(torch.ones(2))
    theirs = torch.nn.Parameter(torch.ones(2))
    optimizer = FusedAdam([ours], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    reference = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    for divisor, gradient in zip((5.0, 1.0), gradients, strict=True):
        ours.grad, theirs.grad = gradient.clone(), gradient / divisor
        optimizer.divisor = divisor
        optimizer.step()
        reference.step()
        assert optimizer.divisor == 1.0
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
