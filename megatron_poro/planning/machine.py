"""The rates of a cluster, from its profile, and what collectives take on it, in seconds."""

from dataclasses import dataclass

from megatron_poro.errors import ConfigError
from megatron_poro.observe.flops import PEAKS
from megatron_poro.planning.calibration import EFFICIENCY, FIXED_SECONDS
from megatron_poro.slurm.profile import Profile
from megatron_poro.topology import Layout


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Of one device: FLOP/s, bytes/s of its memory and of its links in one direction; `efficiency` is of matrix products."""

    peak_flops: float
    efficiency: float
    memory_rate: float
    pair_rate: float
    node_rate: float
    network_rate: float
    latency: float
    devices_per_node: int
    fixed_seconds: float = FIXED_SECONDS


def machine_of(profile: Profile) -> Machine:
    """The rates of a profile's hardware. Raises ConfigError where it has none, or a device that nobody calibrated."""
    hardware = profile.hardware
    if hardware is None:
        raise ConfigError(
            [f"cluster {profile.name}: no [hardware] to plan with; take lumi, generic-h100, ... or add it to your own file"]
        )
    if hardware.peak not in EFFICIENCY:
        raise ConfigError([f"cluster {profile.name}: hardware.peak: {hardware.peak!r} is none of {', '.join(EFFICIENCY)}"])
    return Machine(
        peak_flops=PEAKS[hardware.peak] * 1e12,
        efficiency=EFFICIENCY[hardware.peak],
        memory_rate=hardware.memory_gbps * 1e9,
        pair_rate=(hardware.pair_gbps or hardware.node_gbps) * 1e9,
        node_rate=hardware.node_gbps * 1e9,
        network_rate=hardware.network_gbps * 1e9,
        latency=hardware.latency_us * 1e-6,
        devices_per_node=profile.devices_per_node,
    )


def phase_seconds(machine: Machine, size: int, num_bytes: float, *, rate: float) -> float:
    """An all-gather or a reduce-scatter of `num_bytes` over `size` ranks in a ring: (n - 1) / n of them at the rate of the bus.

    An all-reduce is two. Source: NCCL's performance notes (nccl-tests, PERFORMANCE.md).
    """
    return 0.0 if size == 1 else machine.latency + num_bytes * (size - 1) / size / rate


def neighbour_rate(machine: Machine, size: int) -> float:
    """Rate of a group of `size` neighbouring ranks: a package, a node, or several nodes."""
    if size <= 2:
        return machine.pair_rate
    return machine.node_rate if size <= machine.devices_per_node else machine.network_rate


def data_rate(machine: Machine, layout: Layout) -> float:
    """Rate of the data (and context) axis' groups, whose members stand `tensor` ranks apart.

    Rings of several groups share a node's way out; members of one group within a node have it together.
    """
    size = layout.data * layout.context
    if layout.tensor * size <= machine.devices_per_node:
        return neighbour_rate(machine, layout.tensor * size)
    members = max(1, machine.devices_per_node // layout.tensor)
    return min(machine.node_rate, machine.network_rate * members)


def stage_seconds(machine: Machine, layout: Layout, num_bytes: float) -> float:
    """Sending a microbatch to the next pipeline stage, whose ranks stand tensor x context x data apart."""
    if layout.pipeline == 1:
        return 0.0
    apart = layout.tensor * layout.context * layout.data
    rate = machine.node_rate if apart < machine.devices_per_node else machine.network_rate
    return machine.latency + num_bytes / rate
