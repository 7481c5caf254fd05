"""The CPU answering for torch.cuda changes torch for the whole process, so each test is a process of its own."""

import subprocess
import sys

BESIDE_AN_ACCELERATOR = """
import torch
torch.cuda.is_available = lambda: True
from megatron_poro.engine.platform import install_cpu_platform
try:
    install_cpu_platform()
except RuntimeError as error:
    assert "beside an accelerator" in str(error)
else:
    raise SystemExit("it was installed")
assert torch.zeros.__module__ != "megatron_poro.engine.platform"
"""
ON_A_CPU = """
import torch
from megatron_poro.engine.platform import start_platform
platform = start_platform(0)
assert (platform.kind, platform.backend, platform.is_cpu) == ("cpu", "gloo", True)
assert torch.zeros(2, device="cuda").device.type == "cpu"
assert torch.tensor([1.0], device=torch.device("cuda", 0)).device.type == "cpu"
assert torch.zeros(2, device="meta").device.type == "meta"
assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
assert torch.nn.Linear(2, 2).cuda().weight.device.type == "cpu"
torch.manual_seed(3)
state = torch.cuda.get_rng_state()
first = torch.rand(3)
torch.cuda.set_rng_state(state)
assert torch.equal(torch.rand(3), first)
start_platform(0)
"""

SHARED_SEQUENCES = """
from megatron_poro.engine.platform import Platform, start_platform
cpu = start_platform(0)
from megatron_poro.engine import model
from megatron_poro.errors import LayoutError
from megatron_poro.topology import Layout
accelerator = Platform("cuda", cpu.device, "nccl")
model.HAS_TRANSFORMER_ENGINE = False
model.check_context(Layout(context=2), cpu)
model.check_context(Layout(tensor=2), accelerator)
try:
    model.check_context(Layout(context=2), accelerator)
except LayoutError as error:
    assert "parallel.context (2): on accelerators it needs Transformer Engine" in str(error)
else:
    raise SystemExit("it was let pass")
model.HAS_TRANSFORMER_ENGINE = True
model.check_context(Layout(context=2), accelerator)
"""


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_is_never_installed_beside_an_accelerator() -> None:
    run(BESIDE_AN_ACCELERATOR)


def test_the_cpu_answers_for_device_factories_types_and_generators() -> None:
    run(ON_A_CPU)


def test_sharing_sequences_on_an_accelerator_without_transformer_engine_is_refused() -> None:
    run(SHARED_SEQUENCES)
