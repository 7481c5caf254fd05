"""A run on a cluster, planned: everything that `poro plan` prints, as one value."""

from dataclasses import dataclass, replace

from megatron_poro.config import RunConfig
from megatron_poro.config.duration import duration_of
from megatron_poro.errors import LayoutError
from megatron_poro.observe.flops import FlopsPerToken
from megatron_poro.planning.counts import model_flops, total_parameters
from megatron_poro.planning.endurance import (
    BYTES_PER_PARAMETER,
    DAY,
    Endurance,
    checkpoints_kept,
    days_at_rate,
    elements,
    endure,
)
from megatron_poro.planning.job import Job
from megatron_poro.planning.machine import Machine, machine_of
from megatron_poro.planning.memory import StageMemory, memory_of_stages
from megatron_poro.planning.schedule import Stages, simulate
from megatron_poro.planning.times import StepTime, send_seconds, stage_work, step_time
from megatron_poro.slurm.profile import FileSystem, Profile
from megatron_poro.slurm.size import SPARE_ELEMENTS

ANYWHERE = FileSystem(name="a file system", write_gbps=1.0, read_gbps=1.0, why="nothing is known of it")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the command line adds to a run file: 0 and None leave it to the profile."""

    nodes: int
    failures: float | None = None
    price: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan. Bytes, seconds, days; rates of one device."""

    job: Job
    profile: Profile
    machine: Machine
    nodes: int
    memory: tuple[StageMemory, ...]
    time: StepTime
    flops: FlopsPerToken
    num_steps: int
    num_tokens: int
    parameters: int
    checkpoint_bytes: float
    file_system: FileSystem
    endurance: Endurance
    save_every_steps: int
    kept: int
    days: float
    elements: int
    price: float

    @property
    def limit_bytes(self) -> float:
        """Memory of a device; 0 means that the profile does not know it. GB of vendors are GiB."""
        return self.profile.device_memory_gb * 2**30

    @property
    def needs_bytes(self) -> float:
        """Memory that the fullest stage needs."""
        return max(each.total for each in self.memory)

    @property
    def fits(self) -> bool:
        """Whether every stage fits its device."""
        return not self.limit_bytes or self.needs_bytes <= self.limit_bytes

    @property
    def tokens_per_second(self) -> float:
        """Of one device."""
        return self.job.step_tokens / self.time.seconds / self.job.layout.world_size

    @property
    def tflops(self) -> FlopsPerToken:
        """Model TFLOP/s of one device, in both conventions."""
        return FlopsPerToken(*(self.tokens_per_second * value / 1e12 for value in (self.flops.causal, self.flops.full)))

    @property
    def mfu(self) -> FlopsPerToken:
        """Share of the peak, in both conventions."""
        return FlopsPerToken(*(value * 1e12 / self.machine.peak_flops for value in (self.tflops.causal, self.tflops.full)))

    @property
    def step_days(self) -> float:
        """Days of the steps alone, counted in tokens: steps of a smaller batch before the last ramp are shorter."""
        return self.num_tokens / self.job.step_tokens * self.time.seconds / DAY

    @property
    def gpu_hours(self) -> float:
        """As the cluster bills them."""
        return self.days * 24 * self.nodes * self.profile.devices_per_node * self.profile.gpus_per_device

    @property
    def disk_bytes(self) -> float:
        """What checkpoints take at most."""
        return self.kept * self.checkpoint_bytes

    @property
    def bracket_days(self) -> tuple[float, ...]:
        """Days of the steps at the highest and lowest published rate of such devices, with this layout's bubble; empty without."""
        plateau = self.profile.hardware.plateau_tflops if self.profile.hardware else ()
        m, layout = self.job.num_microbatches, self.job.layout
        efficiency = m / (m + (layout.pipeline - 1) / layout.virtual_stages)
        return tuple(
            days_at_rate(self.num_tokens, self.flops.causal, tflops=rate, devices=layout.world_size, efficiency=efficiency)
            for rate in sorted(plateau, reverse=True)
        )


def make_plan(config: RunConfig, job: Job, profile: Profile, wish: Wish) -> Plan:
    """The plan of a run file's job on a cluster. Raises ConfigError where the cluster has no rates."""
    machine, hardware = machine_of(profile), profile.hardware
    if hardware is None:
        raise ValueError("machine_of refuses profiles without hardware")
    duration, time = duration_of(config), simulated_time(job, machine)
    parameters = total_parameters(job.shape)
    size = float(BYTES_PER_PARAMETER * parameters)
    file_system = (*hardware.file_systems, ANYWHERE)[0]
    endurance = endure(
        wish.nodes,
        size,
        failures=hardware.failures_per_1000_node_days if wish.failures is None else wish.failures,
        write_rate=file_system.write_gbps * 1e9,
        restart_seconds=hardware.restart_minutes * 60,
        interval=config.checkpoint.save_every_steps * time.seconds,
    )
    every = config.checkpoint.save_every_steps or _steps_between(endurance.interval_seconds, time.seconds, duration.num_steps)
    days = duration.num_tokens / job.step_tokens * time.seconds / DAY * (1 + endurance.overhead)
    partition = profile.find_partition(profile.partition)
    return Plan(
        job=job,
        profile=profile,
        machine=machine,
        nodes=wish.nodes,
        memory=tuple(memory_of_stages(job)),
        time=time,
        flops=model_flops(job.shape, job.sequence_length),
        num_steps=duration.num_steps,
        num_tokens=duration.num_tokens,
        parameters=parameters,
        checkpoint_bytes=size,
        file_system=file_system,
        endurance=endurance,
        save_every_steps=every,
        kept=checkpoints_kept(
            duration.num_steps, every=every, keep_last=config.checkpoint.keep_last, keep_every=config.checkpoint.keep_every_steps
        ),
        days=days,
        elements=elements(
            days, partition.max_minutes if partition else 0, start_minutes=hardware.restart_minutes, spare=SPARE_ELEMENTS
        ),
        price=hardware.price_per_gpu_hour if wish.price is None else wish.price,
    )


def simulated_time(job: Job, machine: Machine) -> StepTime:
    """`step_time` with the bubble of the schedule as it is played, which unequal stages make other than the closed form."""
    closed = step_time(job, machine)
    if job.layout.pipeline == 1:
        return closed
    busiest = max(forward.seconds + backward.seconds for forward, backward in stage_work(job, machine))
    seconds = simulate(stages_of(job, machine), job.num_microbatches).seconds
    return replace(closed, bubble=max(0.0, seconds - job.num_microbatches * busiest - closed.pipeline))


def stages_of(job: Job, machine: Machine) -> Stages:
    """What the simulator plays for a job; a stage's chunks share its time equally, the last one's output layer included."""
    work, virtual = stage_work(job, machine), job.layout.virtual_stages
    return Stages(
        forward=tuple(forward.seconds / virtual for forward, _ in work),
        backward=tuple(backward.seconds / virtual for _, backward in work),
        virtual=virtual,
        send=send_seconds(job, machine),
    )


def nodes_for(config: RunConfig, profile: Profile, asked: int | None) -> int:
    """Nodes of a run file's layout. Raises LayoutError where neither it nor the command line says."""
    if not profile.devices_per_node:
        raise LayoutError(f"--cluster {profile.name}: it has no accelerators to plan with")
    if asked is not None:
        if asked < 1:
            raise LayoutError(f"--nodes: {asked} are none; give at least 1")
        return asked
    parallel = config.parallel
    world = parallel.tensor * parallel.pipeline * parallel.context * parallel.data
    if not world:
        raise LayoutError("--nodes: how many? parallel.data is 0 in the run file, which takes as many as there are")
    return -(-world // profile.devices_per_node)


def _steps_between(interval_seconds: float, step_seconds: float, num_steps: int) -> int:
    """Steps between saves of an interval, at most the whole run."""
    return max(1, int(min(interval_seconds / step_seconds, num_steps)))
