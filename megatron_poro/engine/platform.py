"""What the processes compute on, and what unmodified megatron-core needs to run on a CPU.

megatron-core asks torch.cuda for devices, streams and generators, and names the device "cuda" in a few factory calls. On a machine
without an accelerator `install_cpu_platform` answers those calls with the CPU. It is never active where an accelerator is present.
"""

import contextlib
import ctypes
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from megatron_poro.engine.cpu_collectives import install_cpu_collectives
from megatron_poro.engine.cpu_kernels import install_cpu_kernels
from megatron_poro.engine.cpu_linear import install_cpu_linear

CPU = torch.device("cpu")
FACTORIES = ("arange", "empty", "full", "ones", "rand", "randn", "tensor", "zeros")


@dataclass(frozen=True)
class Platform:
    """Kind of device (`cpu`, `cuda`, `rocm`), this process's device, and the torch.distributed backend for it."""

    kind: str
    device: torch.device
    backend: str

    @property
    def is_cpu(self) -> bool:
        """True on the embedded default."""
        return self.kind == "cpu"


def start_platform(local_rank: int) -> Platform:
    """The platform of this process, made ready: device chosen, or the CPU answering for it. Call before importing megatron.core."""
    if not torch.cuda.is_available():
        with _without_loggers():
            install_cpu_platform()
        return Platform("cpu", CPU, "gloo")
    torch.cuda.set_device(local_rank % torch.cuda.device_count())
    with _without_loggers():
        importlib.import_module("megatron.core")
    kind = "rocm" if torch.version.hip else "cuda"
    return Platform(kind, torch.device("cuda", torch.cuda.current_device()), "nccl")


@contextlib.contextmanager
def _without_loggers() -> Iterator[None]:
    """megatron-core loads wandb for its inference engine and TensorBoard for its timers: a fifth of a rank's start, for nothing."""
    hidden = [name for name in ("wandb", "tensorboard") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def install_cpu_platform() -> None:
    """Let the CPU answer for torch.cuda, once per process. Raises RuntimeError where an accelerator is present."""
    if getattr(torch.cuda, "_answered_by_cpu", False):
        return
    if torch.cuda.is_available():
        raise RuntimeError("the CPU platform must not be installed beside an accelerator")
    torch.cuda._answered_by_cpu = True  # type: ignore[attr-defined]
    _answer_device_calls()
    _answer_types()
    _redirect_factories()
    _leave_functions_uncompiled()
    _redirect_generators()
    _keep_freed_memory()
    install_cpu_kernels()
    install_cpu_linear()
    install_cpu_collectives()


class _Stream:
    """A stream or event of a device that does everything at once."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return _do_nothing()

    def record_event(self, *args: object) -> "_Stream":
        return _Stream()

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: object) -> float:
        return 0.0

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *args: object) -> None:
        pass


def _do_nothing() -> Callable[..., None]:
    """A new function that does nothing; torch's compiler objects to one function under several names."""

    def nothing(*args: object, **kwargs: object) -> None:
        pass

    return nothing


@contextlib.contextmanager
def _no_context(*args: object, **kwargs: object) -> Iterator[None]:
    yield


def _answer_device_calls() -> None:
    cuda: Any = torch.cuda
    for name in ("set_device", "synchronize", "empty_cache", "manual_seed", "manual_seed_all", "reset_peak_memory_stats"):
        setattr(cuda, name, _do_nothing())
    cuda.nvtx.range_push, cuda.nvtx.range_pop = _do_nothing(), _do_nothing()
    cuda.current_device = lambda: CPU
    cuda.current_stream, cuda.default_stream = (lambda *args: _Stream()), (lambda *args: _Stream())
    cuda.Stream = cuda.Event = _Stream
    cuda.stream = cuda.device = _no_context
    cuda.get_device_capability = lambda *args: (0, 0)
    cuda.memory_allocated, cuda.max_memory_allocated = (lambda *args: 0), (lambda *args: 0)
    cuda.is_current_stream_capturing = lambda: False
    tensor: Any = torch.Tensor
    module: Any = torch.nn.Module
    tensor.cuda = module.cuda = lambda self, *args, **kwargs: self


def _answer_types() -> None:
    """megatron-core compares type names with `torch.cuda.FloatTensor` and asks isinstance of the cuda types."""
    cuda: Any = torch.cuda
    cuda.FloatTensor, cuda.HalfTensor, cuda.BFloat16Tensor = torch.FloatTensor, torch.HalfTensor, torch.BFloat16Tensor
    tensor: Any = torch.Tensor
    original = tensor.type

    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return original(self, *args, **kwargs)
        return original(self).replace("torch.", "torch.cuda.", 1)

    tensor.type = type_name


def _redirect_factories() -> None:
    """`torch.zeros(..., device="cuda")` makes a CPU tensor.

    Wrapping the few factories costs nothing elsewhere; a TorchFunctionMode would tax every operation.
    """
    for name in FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def redirected(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if device is not None and str(device).startswith("cuda"):
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)  # without an accelerator there is nothing to pin it for, and torch refuses
        return factory(*args, **kwargs)

    return redirected


def _leave_functions_uncompiled() -> None:
    """megatron-core decorates small functions with torch.compile while it is imported; on a CPU the compiler's own import takes
    each process seconds, and nothing here calls those functions."""

    def uncompiled(function: Any = None, **settings: Any) -> Any:
        return function if function is not None else uncompiled

    compiler: Any = torch
    compiler.compile = uncompiled


def _redirect_generators() -> None:
    """Random states of the device are the CPU generator's. Seeding stays apart: torch.manual_seed itself seeds the device."""
    cuda: Any = torch.cuda
    get_state: Callable[..., torch.Tensor] = lambda *args, **kwargs: torch.get_rng_state()  # noqa: E731
    set_state: Callable[..., None] = lambda state, *args, **kwargs: torch.set_rng_state(state)  # noqa: E731
    cuda.get_rng_state = cuda.random.get_rng_state = get_state
    cuda.set_rng_state = cuda.random.set_rng_state = set_state
    import megatron.core.tensor_parallel.random as megatron_random

    functions: Any = megatron_random
    functions._get_cuda_rng_state, functions._set_cuda_rng_state = get_state, set_state


def _keep_freed_memory() -> None:
    """Have glibc keep large blocks that are freed: the next step asks for the same, and the kernel clears all pages it gives."""
    trim_threshold, top_pad, mmap_threshold, never = -1, -2, -3, -1  # names and numbers of malloc.h
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(mmap_threshold, 2**31 - 1)
        set_option(trim_threshold, never)
        set_option(top_pad, 2**26)
