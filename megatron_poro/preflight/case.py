"""What is checked: the run file, resolved, and what it is to run on. Opened files are kept, each check asks here."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_indexing.manifest import Manifest, load_manifest
from megatron_poro.config import RANDOM, ModelConfig, RunConfig, recipes
from megatron_poro.config.duration import Duration, duration_of
from megatron_poro.config.parse import Problems, build
from megatron_poro.data import Plan, TrainingData, build_plan
from megatron_poro.engine.paths import list_checkpoints
from megatron_poro.errors import USER_ERRORS
from megatron_poro.observe import Record, read_metrics
from megatron_poro.preflight.script import JobScript, minutes_of
from megatron_poro.slurm.profile import Profile

BYTES_PER_PARAMETER = {"bf16": 14, "fp32": 12}
"""Of a training checkpoint: bf16 weight 2, master weight 4, Adam's moments 8; in fp32 the weights are the master weights."""


@dataclass(frozen=True)
class Setting:
    """A variable's value, and who sets it."""

    value: str
    where: str


@dataclass(frozen=True)
class Surroundings:
    """What a run meets: the cluster, a job script, and the variables that its ranks will see."""

    profile: Profile | None
    script: JobScript | None
    environment: Mapping[str, Setting]


@dataclass(frozen=True)
class Case:
    """A run to check. `plain` is the run file as it stands there; `nodes` what the user asked for."""

    run_file: Path
    config: RunConfig
    plain: Mapping[str, Any]
    around: Surroundings
    nodes: int | None = None
    reads_all: bool = False

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.config.run_directory)

    @cached_property
    def duration(self) -> Duration:
        """How long the run is."""
        return duration_of(self.config)

    @cached_property
    def checkpoints(self) -> list[Path]:
        """Those that the run has already."""
        return list_checkpoints(self.directory)

    @cached_property
    def pairs(self) -> dict[str, str]:
        """Every token file's key in the run file, and its prefix."""
        found = {f"data.sources[{n}] ({source.name})": source.path for n, source in enumerate(self.config.data.sources)}
        held = enumerate(self.config.data.validation)
        return found | {f"data.validation[{n}] ({each.name})": each.path for n, each in held if each.path}

    @cached_property
    def data(self) -> TrainingData | None:
        """The opened token files; None where one of them cannot be opened, which `data.files` says."""
        try:
            return TrainingData(self.config.data)
        except (*USER_ERRORS, OSError, ValueError):
            return None

    @cached_property
    def plan(self) -> Plan | None:
        """What the whole run reads of each source, exact."""
        return build_plan(self.data, self.duration.num_samples) if self.data else None

    @cached_property
    def manifests(self) -> dict[str, Manifest]:
        """The manifests that can be read, by the key of their files."""
        found = {}
        for key, path in self.pairs.items():
            try:
                manifest = load_manifest(path)
            except (*USER_ERRORS, OSError):
                continue
            if manifest:
                found[key] = manifest
        return found

    @cached_property
    def initial(self) -> Path | None:
        """The start checkpoint; None for random weights."""
        return None if self.config.checkpoint.initial == RANDOM else Path(self.config.checkpoint.initial)

    @cached_property
    def initial_model(self) -> tuple[ModelConfig, dict[str, Any]] | None:
        """The model in the start checkpoint and where it came from, by its model.json; None where there is none."""
        return read_model(self.initial) if self.initial else None

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe's own values."""
        return recipes().get(self.config.recipe, {})

    @cached_property
    def records(self) -> list[Record]:
        """What the run has measured so far."""
        path = self.directory / "metrics.jsonl"
        return read_metrics(path) if path.is_file() else []

    @property
    def tasks_per_node(self) -> int:
        """Ranks of a node; 0 where nobody says."""
        script = self.around.script.options.get("--ntasks-per-node", "") if self.around.script else ""
        return int(script) if script.isdecimal() else self.around.profile.devices_per_node if self.around.profile else 0

    @cached_property
    def world_size(self) -> int | None:
        """Ranks: of the nodes asked for, of the job script, or as parallel.data says; None where nobody says."""
        parallel = self.config.parallel
        if self.nodes and self.tasks_per_node:
            return self.nodes * self.tasks_per_node
        asked = self.around.script.options if self.around.script else {}
        nodes, tasks = asked.get("--nodes", ""), asked.get("--ntasks", "")
        if nodes.isdecimal() and self.tasks_per_node:
            return int(nodes) * self.tasks_per_node
        if tasks.isdecimal():
            return int(tasks)
        return parallel.tensor * parallel.pipeline * parallel.context * parallel.data or None

    @property
    def limit_minutes(self) -> int | None:
        """Time limit of an element: the job script's, or the longest of its partition."""
        profile, script = self.around.profile, self.around.script
        if script and "--time" in script.options:
            return minutes_of(script.options["--time"])
        partition = profile.find_partition(profile.partition) if profile else None
        return partition.max_minutes or None if partition else None

    @cached_property
    def checkpoint_bytes(self) -> int:
        """Of one training checkpoint."""
        return BYTES_PER_PARAMETER[self.config.training.precision] * count_parameters(self.config.model)


def count_parameters(model: ModelConfig) -> int:
    """All weights of a model, without rows that pad the vocabulary."""
    size = model.head_dim or model.hidden_size // model.num_attention_heads
    attention = 2 * (model.num_attention_heads + model.num_key_value_heads) * size
    layer = model.hidden_size * (attention + 3 * model.ffn_hidden_size + 2)
    tables = 1 if model.tied_embeddings else 2
    return model.num_layers * layer + model.hidden_size * (tables * model.vocab_size + 1)


def read_model(checkpoint: Path) -> tuple[ModelConfig, dict[str, Any]] | None:
    """A checkpoint's model.json, as `conversion` reads it, but without torch; None where it is missing or says no model."""
    try:
        content = json.loads((checkpoint / "model.json").read_text(encoding="utf-8"))
        model = build(ModelConfig, content["model"], "model", Problems())
        return (model, dict(content["source"])) if model else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_plain(path: Path) -> dict[str, Any]:
    """The run file as it stands there; it parsed before."""
    return tomllib.loads(path.read_text(encoding="utf-8"))
