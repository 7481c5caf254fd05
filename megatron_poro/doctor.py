"""What this machine has of what the project can use: each finding says what it is, and what is missing for what.

Uses torch but starts no process group, so it is safe on a login node.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from megatron_poro import __version__


@dataclass(frozen=True)
class Finding:
    """One thing looked for: `status` is `ok`, `missing` (something else takes its place) or `fatal` (training cannot run)."""

    name: str
    status: str
    detail: str

    @property
    def is_fatal(self) -> bool:
        """True when nothing trains without it."""
        return self.status == "fatal"


def diagnose() -> list[Finding]:
    """Look for everything, in the order in which a run needs it."""
    looks: tuple[Callable[[], Finding], ...] = (
        _python,
        _torch,
        _accelerator,
        _collectives,
        lambda: _package("megatron-core", "megatron.core", "training", fatal=True),
        lambda: _package("psutil", "psutil", "writing checkpoints", fatal=True),
        lambda: _package("transformers", "transformers", "Llama 3 tokenizer.model files and loading exports"),
        lambda: _package(
            "transformer-engine", "transformer_engine", "fused layers; our RMSNorm and torch's attention take its place"
        ),
        lambda: _package("apex", "apex", "fused norms; torch's kernels take its place"),
        _slurm,
        lambda: _package("wandb", "wandb", "dashboards; metrics.jsonl is always written"),
        lambda: _package("matplotlib", "matplotlib", "loss-curve pictures"),
        lambda: _package("bokeh", "bokeh", "`poro report`; `poro compare` works without"),
    )
    return [look() for look in looks]


def render(findings: list[Finding]) -> str:
    """A table, one line per finding."""
    width = max(len(finding.name) for finding in findings)
    return "\n".join(f"{finding.status:<8} {finding.name:<{width}}  {finding.detail}" for finding in findings)


def render_json(findings: list[Finding]) -> str:
    """One JSON object."""
    return json.dumps({"version": __version__, "findings": [asdict(finding) for finding in findings]}, indent=2)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding(
        "python", "ok" if sys.version_info >= (3, 11) else "fatal", f"{version}, {cores} cores, megatron_poro {__version__}"
    )


def _torch() -> Finding:
    return _package("torch", "torch", "training and conversion", fatal=True)


def _accelerator() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("accelerator", "missing", "cannot be asked for without torch")
    import torch

    if not torch.cuda.is_available():
        return Finding("accelerator", "missing", "none; training runs on the CPU, for demo and tests")
    properties = torch.cuda.get_device_properties(0)
    platform = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    memory = properties.total_memory / 2**30
    return Finding("accelerator", "ok", f"{torch.cuda.device_count()} x {properties.name}, {memory:.0f} GiB each, {platform}")


def _collectives() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("collectives", "missing", "cannot be asked for without torch")
    import torch.distributed as dist
    from torch.version import hip

    nccl = "RCCL" if hip else "NCCL"
    found = [name for name, there in (("gloo", dist.is_gloo_available()), (nccl, dist.is_nccl_available())) if there]
    lacking = [f"no {name}" for name in ("gloo", nccl) if name not in found]
    purposes = "gloo serves CPUs, NCCL and RCCL serve accelerators"
    return Finding("collectives", "ok" if found else "fatal", f"{', '.join(found + lacking)}; {purposes}")


def _package(name: str, module: str, purpose: str, *, fatal: bool = False) -> Finding:
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        return Finding(name, "fatal" if fatal else "missing", f"for {purpose}; `pip install {name}`")
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = "version unknown"
    return Finding(name, "ok", version)


def _slurm() -> Finding:
    sbatch = shutil.which("sbatch")
    if not sbatch:
        return Finding("slurm", "missing", "no sbatch on the PATH; `poro train` starts its processes itself, torchrun works too")
    answer = subprocess.run([sbatch, "--version"], capture_output=True, text=True, timeout=10, check=False)
    return Finding("slurm", "ok", answer.stdout.strip() or answer.stderr.strip())
