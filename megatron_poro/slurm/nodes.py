"""The look at every node before an element trains: what it has, how fast it multiplies, and which one is not like the others."""

import contextlib
import json
import os
import shutil
import socket
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_poro.slurm.profile import Profile, load_profile

if TYPE_CHECKING:
    from megatron_poro.engine.platform import Platform

Measurement = dict[str, Any]
ROUNDS = 3


def node_name() -> str:
    """This node as Slurm calls it; its host name outside of a job."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def measure(target: Path, profile: Profile) -> Measurement:
    """Measure this node and leave the result as TARGET/NODE.json. Loads torch."""
    found: Measurement = {"node": node_name(), "devices": 0, "memory_gb": [], "seconds": [], "problem": ""}
    found["local_disk_gb"] = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
    found["links_down"] = [link for link in profile.node_check.links if _link_state(link) != "up"]
    try:
        _measure_devices(found)
    except RuntimeError as error:  # what torch raises for a device that does not work
        found["problem"] = str(error).splitlines()[0]
    target.mkdir(parents=True, exist_ok=True)
    partial = target / f".{found['node']}.{os.getpid()}"
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.rename(target / f"{found['node']}.json")
    return found


def _measure_devices(found: Measurement) -> None:
    import torch

    from megatron_poro.engine.probe import DeviceProbe

    found["devices"] = torch.cuda.device_count()
    for platform in _platforms():
        if not platform.is_cpu:
            torch.cuda.set_device(platform.device)
            found["memory_gb"].append(torch.cuda.get_device_properties(platform.device).total_memory / 1e9)
        probe = DeviceProbe(platform)
        for _ in range(ROUNDS):
            probe.measure()
        found["seconds"].append(probe.take_median())


def measure_rates(product_size: int) -> Iterator[tuple[str, float]]:
    """Name and TFLOP/s of each device, one by one, with products of that size; of the CPU where there is none."""
    import torch

    from megatron_poro.engine.probe import device_name, measure_tflops

    for platform in _platforms():
        if not platform.is_cpu:
            torch.cuda.set_device(platform.device)
        yield device_name(platform), measure_tflops(platform, size=0 if platform.is_cpu else product_size)


def _platforms() -> list["Platform"]:
    """This node's accelerators, or its CPU."""
    import torch

    from megatron_poro.engine.platform import Platform

    numbers = range(torch.cuda.device_count())
    found = [Platform("accelerator", torch.device("cuda", number), "nccl") for number in numbers]
    return found or [Platform("cpu", torch.device("cpu"), "gloo")]


def _link_state(link: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/sys/class/net/{link}/operstate").read_text().strip()
    return "missing"


def read_measurements(folder: Path) -> dict[str, Measurement]:
    """What the nodes left, by node."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            measured = json.loads(path.read_text(encoding="utf-8"))
            found[str(measured["node"])] = measured
    return found


def judge(found: Mapping[str, Measurement], cluster: str) -> dict[str, str]:
    """The nodes that are bad, each with the reason."""
    profile = load_profile(cluster)
    seconds = [each for measured in found.values() for each in measured["seconds"]]
    median = statistics.median(seconds) if seconds else 0.0
    reasons = {node: _reason(measured, profile, median) for node, measured in found.items()}
    return {node: reason for node, reason in reasons.items() if reason}


def _reason(measured: Measurement, profile: Profile, median: float) -> str:
    """The first thing that is wrong with a node; empty when nothing is."""
    check, devices = profile.node_check, measured["devices"]
    least = min(measured["memory_gb"], default=0.0)
    slowest = max(measured["seconds"], default=0.0)
    reasons = (
        (measured["problem"], measured["problem"]),
        (devices < profile.devices_per_node, f"{devices} of {profile.devices_per_node} devices are there"),
        (
            least < 0.9 * profile.device_memory_gb,
            f"a device has {least:.0f} GB of memory instead of {profile.device_memory_gb:.0f}",
        ),
        (measured["links_down"], f"not up: {', '.join(measured['links_down'])}"),
        (
            measured["local_disk_gb"] < check.min_local_disk_gb,
            f"{measured['local_disk_gb']:.1f} GB free on its own disk, less than {check.min_local_disk_gb:g}",
        ),
        (
            check.slower_percent and slowest > median * (1 + check.slower_percent / 100),
            f"matrix products take {slowest / (median or 1.0) - 1:.0%} longer than the median of all devices",
        ),
    )
    return next((str(reason) for is_bad, reason in reasons if is_bad), "")
