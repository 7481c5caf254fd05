"""A tiny run with all that `poro check` looks at, as it should be: token files, manifests, start checkpoint, launch, measures.

Checkpoints are sizes and notes without weights: no check reads any.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from data_indexing.format import bin_path, idx_path
from data_indexing.manifest import Counts, InputFile, Manifest, Policy, TokenizerRecord, file_sha256, save_manifest
from data_indexing.writer import IndexedWriter
from megatron_poro.config import ModelConfig, load_run, save_run
from megatron_poro.config.parse import merge
from megatron_poro.data import TrainingData
from megatron_poro.engine.paths import checkpoint_path
from megatron_poro.preflight.case import count_parameters
from megatron_poro.preflight.check import Question, check_run
from megatron_poro.preflight.findings import Finding
from megatron_poro.slurm.launch import keep_script, prepare
from megatron_poro.slurm.records import save_job
from megatron_poro.slurm.size import Request
from tests.runs import MODEL, write_run

BOS, EOD = 1, 2
RUN: dict[str, Any] = {
    "data": {"validation": [{"name": "fi", "source": "fi", "last_sequences": 1}]},
    "checkpoint": {"initial": "start", "save_every_steps": 4, "keep_last": 2},
    "observe": {"wandb_project": "poro"},
}
CLUSTER = {"base": "lumi", "account": "project_1", "container": {"image": "rocm-7.1.sif"}}
VARIABLES = {"LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Run:
    """A written run: its run file and its cluster."""

    folder: Path
    question: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.folder / "run.toml"

    @property
    def directory(self) -> Path:
        return self.folder / "run"

    def check(self, *overrides: str, variables: Mapping[str, str] = VARIABLES, **question: Any) -> list[Finding]:
        asked = {"cluster": str(self.folder / "cluster.toml"), **self.question, **question}
        return check_run(Question(self.file, overrides, **asked), variables)

    def of(self, check: str, *overrides: str, **question: Any) -> list[Finding]:
        """What one check found."""
        return [finding for finding in self.check(*overrides, **question) if finding.check == check]


def write_pair(prefix: Path, *, seed: int = 0, ends: tuple[int, int] = (BOS, EOD), documents: int = 130, **changes: Any) -> None:
    """A pair of predictable text, and its manifest with `changes`."""
    rng = np.random.Generator(np.random.PCG64(seed))
    lengths = rng.integers(50, 150, documents)
    with IndexedWriter(prefix, np.uint16) as writer:
        for length in lengths:
            text = rng.integers(3, 256, length + 2, np.uint16)
            text[[0, -1]] = ends
            writer.add_document(text)
    write_manifest(prefix, documents, int(lengths.sum()) + 2 * documents, **changes)


def write_manifest(prefix: Path, documents: int, tokens: int, **changes: Any) -> None:
    origin = hashlib.sha256(prefix.name.encode()).hexdigest()
    values: dict[str, Any] = {
        "tokenizer": TokenizerRecord("tiny", "a" * 64, 256),
        "policy": Policy("document", BOS, "document", EOD),
        "dtype": "uint16",
        "counts": Counts(documents, tokens, 0, None),
        "inputs": (InputFile(f"{prefix.name}.jsonl", 1000, origin),),
        "bin_sha256": file_sha256(bin_path(prefix)),
        "idx_sha256": file_sha256(idx_path(prefix)),
    }
    save_manifest(prefix, Manifest(**{**values, **changes}))


def write_start(folder: Path, *, width: int = 4, proved: bool = True, **changes: Any) -> Path:
    """A converted checkpoint of `width` bytes a parameter, of the tiny model with `changes`."""
    folder.mkdir()
    model = ModelConfig(**{**MODEL, **changes})
    with (folder / "__0_0.distcp").open("wb") as file:
        file.truncate(width * count_parameters(model))
    (folder / ".metadata").write_bytes(b"index")
    source = {"name": "hf", "token_ids": {"bos_token_id": BOS, "eos_token_id": EOD}}
    (folder / "model.json").write_text(json.dumps({"format": 1, "model": asdict(model), "source": source}))
    (folder / "conversion.json").write_text(json.dumps({"proved": proved, "source": {"name": "hf"}, "tensors": {"a": "b"}}))
    list_files(folder)
    return folder


def list_files(folder: Path) -> None:
    """Write files.json."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in folder.iterdir() if path.is_file()}
    (folder / "files.json").write_text(json.dumps({"format": 1, "files": files}, indent=1, ensure_ascii=False) + "\n")


def write_checkpoint(run: Run, step: int = 4, *, width: int = 12) -> Path:
    """A checkpoint that the run would have saved after `step` steps."""
    config = load_run(run.file)
    folder = checkpoint_path(run.directory, step)
    folder.mkdir(parents=True)
    save_run(config, folder / "config.toml")
    with closing(TrainingData(config.data)) as data:
        state = {"step": step, "samples": 8 * step, "tokens": 512 * step, "ledger": {}, "data": data.fingerprint()}
    (folder / "state.json").write_text(json.dumps(state))
    with (folder / "__0_0.distcp").open("wb") as file:
        file.truncate(width * count_parameters(config.model))
    list_files(folder)
    return folder


def write_metrics(run: Run, *, step_seconds: float = 10.0, save_seconds: float = 5.0) -> None:
    """Times that the run measured."""
    run.directory.mkdir(exist_ok=True)
    records = [{"event": "step", "step": 1, "time": 1.0, "seconds": step_seconds}]
    records.append({"event": "checkpoint", "step": 1, "time": 2.0, "seconds": save_seconds, "path": "x"})
    (run.directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def write_all(folder: Path, changes: Mapping[str, Any] | None = None, *, launched: bool = True) -> Run:
    """The whole run, launched on one node, with times measured."""
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(("fi", "en")):
        write_pair(folder / name, seed=seed)
    write_start(folder / "start")
    write_run(folder / "run.toml", merge(RUN, changes or {}))
    (folder / "rocm-7.1.sif").write_bytes(b"image")
    cluster = merge(CLUSTER, {"container": {"image": str(folder / "rocm-7.1.sif")}})
    (folder / "cluster.toml").write_text(tomli_w.dumps(cluster))
    run = Run(folder)
    write_metrics(run)
    if launched:
        launch(run)
    return run


def launch(run: Run) -> None:
    """What `poro launch` leaves, but for Slurm's ids."""
    prepared = prepare(Request(run.file, cluster=str(run.folder / "cluster.toml"), nodes=1, days=1.0))
    keep_script(prepared.job, prepared.text)
    save_run(prepared.config, Path(prepared.job.run_file))
    save_job(prepared.job)


def change_script(run: Run, *changes: tuple[str, str]) -> None:
    """Replace pieces of the launched script; a piece that is not there fails the test."""
    path = run.directory / "slurm" / "job.sh"
    text = path.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)


def colours(findings: Sequence[Finding]) -> dict[str, set[str]]:
    """The colours of each check."""
    found: dict[str, set[str]] = {}
    for finding in findings:
        found.setdefault(finding.check, set()).add(finding.colour)
    return found
