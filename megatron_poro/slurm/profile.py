"""What a cluster wants of a job, as data: `clusters/NAME.toml`, or a file of one's own that may change one of them, its `base`."""

import re
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from megatron_poro.config.parse import Plain, Problems, build, merge
from megatron_poro.config.schema import setting
from megatron_poro.errors import ConfigError

NAMES = (
    *("lumi", "generic-nvidia", "generic-a100", "generic-h100", "generic-h200", "generic-gh200", "generic-mi300x"),
    *("local", "test"),
)


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A partition and its limits."""

    name: str = setting("as Slurm calls it")
    max_minutes: int = setting("longest time of a job; 0 means no limit", default=0)
    max_nodes: int = setting("most nodes of a job; 0 means no limit", default=0)
    max_jobs: int = setting("most jobs of a user, elements of an array counted one by one; 0 means no limit", default=0)
    whole_nodes: bool = setting("a job has its nodes for itself", default=False)
    devices: bool = setting("its nodes have accelerators", default=True)
    why: str = setting("what it is for", default="")
    source: str = setting("where that was read", default="")


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option of sbatch or srun."""

    option: str = setting("as on the command line")
    devices: bool = setting("for jobs on accelerators alone", default=False)
    whole_nodes: bool = setting("for partitions of whole nodes alone", default=False)
    why: str = setting("what it does here")
    source: str = setting("where that was read", default="")


@dataclass(frozen=True, kw_only=True)
class Variable:
    """A variable of the job's environment. `{USER}` and `{SLURM_JOB_ID}` stand for the job's."""

    name: str = setting("as the programs read it")
    value: str = setting("its value")
    why: str = setting("what it does here")
    source: str = setting("where that was read", default="")


@dataclass(frozen=True, kw_only=True)
class Container:
    """How ranks run inside an image, when one is given."""

    runtime: str = setting("program that runs it: singularity or apptainer", default="apptainer")
    image: str = setting("image file or folder; empty means no container", default="")
    python: str = setting("Python inside", default="python3")
    binds: tuple[str, ...] = setting("folders of the host that are seen inside", default=())
    arguments: tuple[str, ...] = setting("further arguments of `exec`", default=())
    why: str = setting("why these", default="")
    source: str = setting("where that was read", default="")


@dataclass(frozen=True, kw_only=True)
class KnownBad:
    """A setting that is known to go wrong on this cluster."""

    name: str = setting("variable")
    values: tuple[str, ...] = setting("values that go wrong; none means any", default=())
    why: str = setting("what happens")
    instead: str = setting("what to do")
    source: str = setting("where that was read")


@dataclass(frozen=True, kw_only=True)
class NodeCheck:
    """What a node must show before an element trains on it."""

    min_local_disk_gb: float = setting("free space of the node's temporary folder, in GB", default=1.0)
    links: tuple[str, ...] = setting("network interfaces that must be up", default=())
    slower_percent: float = setting("a node whose products take this much longer than the median is bad; 0 means any", default=15.0)


@dataclass(frozen=True, kw_only=True)
class FileSystem:
    """Where checkpoints may lie."""

    name: str = setting("as users call it")
    write_gbps: float = setting("what a job of many nodes may count on when it writes, in GB/s")
    read_gbps: float = setting("the same when it reads, in GB/s")
    quota_tb: float = setting("space that a project may take, in TB; 0 means unknown", default=0.0)
    why: str = setting("how the rates come about", default="")
    source: str = setting("where that was read", default="")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Rates that `poro plan` counts with. Rates of links are of one device in one direction."""

    peak: str = setting("the device's name among the known bf16 peaks")
    memory_gbps: float = setting("rate of a device's memory, in GB/s")
    pair_gbps: float = setting("collectives of the two devices of a package, in GB/s; 0 means as the rest", default=0.0)
    node_gbps: float = setting("collectives within a node, in GB/s of the bus")
    network_gbps: float = setting("a device's share of the node's way to others, in GB/s")
    latency_us: float = setting("what a collective within a node takes besides its bytes, in microseconds", default=35.0)
    plateau_tflops: tuple[float, ...] = setting(
        "lowest and highest published rate of training, bubbles taken out, TFLOP/s", default=()
    )
    failures_per_1000_node_days: float = setting("failures that end a job, of 1,000 nodes in a day", default=5.0)
    restart_minutes: float = setting("from a failure to the next step, without the steps that are lost", default=15.0)
    price_per_gpu_hour: float = setting("what an hour of a billed GPU costs; 0 means unknown", default=0.0)
    file_systems: tuple[FileSystem, ...] = setting("the first one is planned with", default=())
    sources: tuple[str, ...] = setting("where all that was read", default=())


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A cluster. `name` is what `--cluster` said."""

    name: str = setting("as given")
    description: str = setting("in a few words")
    scheduler: str = setting("slurm, or none for this machine without it", default="slurm", choices=("slurm", "none"))
    devices_per_node: int = setting("accelerators of a node, and so ranks; 0 means CPUs")
    device: str = setting("what they are called")
    device_memory_gb: float = setting("memory of one, in GB; 0 means unknown", default=0.0)
    gpus_per_device: float = setting("GPUs that a device counts as where GPU-hours are billed", default=1.0)
    partition: str = setting("partition unless one is given; empty means Slurm's default", default="")
    account: str = setting("account unless one is given", default="")
    needs_account: bool = setting("jobs without an account are refused", default=False)
    modules: tuple[str, ...] = setting("modules to load", default=())
    signal_lead_minutes: float = setting(
        "how long before the time limit a run is told to save, until its saves were timed", default=10.0
    )
    partitions: tuple[Partition, ...] = setting("known partitions", default=())
    sbatch: tuple[Option, ...] = setting("options of the job", default=())
    srun: tuple[Option, ...] = setting("options of the step that trains", default=())
    environment: tuple[Variable, ...] = setting("variables of the ranks", default=())
    container: Container = setting("the container", default=Container())
    known_bad: tuple[KnownBad, ...] = setting("settings known to go wrong", default=())
    node_check: NodeCheck = setting("what a node must show", default=NodeCheck())
    hardware: Hardware | None = field(default=None, metadata={"help": "rates that `poro plan` counts with"})

    def find_partition(self, name: str) -> Partition | None:
        """The partition of that name, if the profile knows it."""
        return next((partition for partition in self.partitions if partition.name == name), None)


def load_profile(name: str) -> Profile:
    """A profile by its name or by the path of a TOML file. Raises ConfigError with one line per problem."""
    problems = Problems()
    plain = _read(name, problems)
    profile: Profile | None = None if problems else build(Profile, {"name": name, **plain}, "", problems)
    if profile:
        problems += [
            f"environment: {variable.name!r} is no name that a variable can have"
            for variable in profile.environment
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable.name)
        ]
    if profile is None or problems:
        raise ConfigError([f"cluster {name}: {problem}" for problem in problems])
    return profile


def _read(name: str, problems: Problems) -> Plain:
    if name in NAMES:
        file = resources.files("megatron_poro.slurm").joinpath("clusters", f"{name}.toml")
        return _lay_over_base(tomllib.loads(file.read_text(encoding="utf-8")), problems)
    if not name.endswith(".toml"):
        problems.append(f"no such profile; there are {', '.join(NAMES)}, or give a .toml file of your own")
        return {}
    return _lay_over_base(_read_own(Path(name), problems), problems)


def _lay_over_base(own: Plain, problems: Problems) -> Plain:
    """`own`, over the profile that it names as its base."""
    if "base" not in own:
        return own
    base = own.pop("base")
    if base not in NAMES:
        problems.append(f"base: {base!r} is none of {', '.join(NAMES)}")
        return {}
    return _lay_over(_read(base, problems), own)


def _read_own(path: Path, problems: Problems) -> Plain:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"cannot be read: {error}")
    except tomllib.TOMLDecodeError as error:
        problems.append(f"not valid TOML: {error}")
    return {}


def _lay_over(base: Plain, own: Plain) -> Plain:
    """`own` over `base`: of lists of tables, those that name the same thing are replaced, others are added."""
    result = merge(base, own)
    for key, name in (
        ("environment", "name"),
        ("partitions", "name"),
        ("sbatch", "option"),
        ("srun", "option"),
        ("known_bad", "name"),
    ):
        if isinstance(base.get(key), list) and isinstance(own.get(key), list):
            named = {_subject(entry, name): entry for entry in base[key]}
            named.update({_subject(entry, name): entry for entry in own[key]})
            result[key] = list(named.values())
    return result


def _subject(entry: Any, name: str) -> str:
    """What an entry is about: `--mem=480G` is about `--mem`."""
    return str(entry.get(name, "")).partition("=")[0] if isinstance(entry, dict) else repr(entry)
