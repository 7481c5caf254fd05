"""The checkpoint that a run starts from: there, whole, proved, the right model, and nothing dropped in silence."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_poro.config.sameness import differing_keys
from megatron_poro.errors import CheckpointError
from megatron_poro.preflight.case import Case, count_parameters
from megatron_poro.preflight.findings import Finding, green, not_checked, red, size, yellow


def check_files(case: Case) -> Iterator[Finding]:
    """It is a Megatron checkpoint, and every file has its size; with --hash, its SHA-256."""
    path = case.initial
    if path is None:
        colour = yellow if case.recipe else green
        yield colour(
            "start.files", f"checkpoint.initial: random weights{', though the recipe continues a model' if case.recipe else ''}"
        )
    elif case.checkpoints:
        yield green("start.files", f"not read: the run goes on from {case.checkpoints[-1].name}")
    elif not path.exists():
        yield red(
            "start.files", f"checkpoint.initial: {path} does not exist; make it with `poro convert to-megatron HF_DIR {path}`"
        )
    elif not (path / ".metadata").is_file():
        way = (
            "convert it with `poro convert to-megatron`"
            if (path / "config.json").is_file()
            else "give the folder that holds .metadata"
        )
        yield red("start.files", f"checkpoint.initial: {path} is no Megatron distributed checkpoint (it has no .metadata); {way}")
    else:
        yield from find_damage("start.files", path, reads_all=case.reads_all)


def find_damage(check: str, checkpoint: Path, *, reads_all: bool) -> Iterator[Finding]:
    """Files of a checkpoint against its files.json; a writer that died leaves some out, or short."""
    listed = read_json(checkpoint / "files.json").get("files", {})
    if not isinstance(listed, dict):
        yield red(check, f"{checkpoint / 'files.json'} is damaged; copy it again")
        return
    if not listed:
        yield yellow(check, f"{checkpoint}: no files.json lists sizes and hashes, so damage would not be seen; convert with proof")
        return
    faults = [text for name, entry in listed.items() if (text := _file_fault(checkpoint / name, entry))]
    if not faults and reads_all:
        faults = _find_changes(checkpoint)
    yield from (red(check, f"{text}; copy or convert it again, or ask for the right to read it") for text in faults)
    if not faults:
        total = sum(entry["bytes"] for entry in listed.values())
        yield green(check, f"{checkpoint}: {len(listed)} files, {size(total)}{', every byte as written' if reads_all else ''}")


def _find_changes(checkpoint: Path) -> list[str]:
    from megatron_poro.conversion import find_change, read_checksums  # loads torch

    return [change] if (change := find_change(checkpoint, sorted(read_checksums(checkpoint)))) else []


def _file_fault(path: Path, entry: Any) -> str:
    try:
        found, said = path.stat().st_size, entry["bytes"]
    except (KeyError, TypeError):
        return f"{path.parent / 'files.json'} is damaged: it gives {path.name} no size"
    except FileNotFoundError:
        return f"{path} is missing, though files.json lists it"
    if not os.access(path, os.R_OK, effective_ids=True):
        return f"{path} may not be read by you"
    return "" if found == said else f"{path} has {found} bytes, files.json says {said}"


def check_proof(case: Case) -> Iterator[Finding]:
    """A converted checkpoint says that it was read back and compared."""
    path = _needed(case)
    if path is None or (path / "state.json").is_file():
        return
    proof = read_json(path / "conversion.json")
    if proof.get("proved"):
        yield green(
            "start.proof", f"all {len(proof.get('tensors', ()))} tensors were read back and equal {proof['source']['name']}'s"
        )
    else:
        why = "was converted without proof" if proof else "has no conversion.json"
        yield yellow(
            "start.proof",
            f"checkpoint.initial: {path} {why}: nobody compared it with its origin; `poro convert verify {path} HF_DIR`",
        )


def check_model(case: Case) -> Iterator[Finding]:
    """Every key that changes what the model computes, and the length that it claims."""
    if _needed(case) is None:
        return
    if case.initial_model is None:
        yield not_checked("start.model", f"{case.initial} has no model.json that says its shape; convert it with `poro convert`")
        return
    there, ours = case.initial_model[0], case.config.model
    faults = [
        red("start.model", f"{line} in {case.initial}; take the checkpoint's{_padding(case, line)}")
        for line in differing_keys(ours, there)
    ]
    yield from faults
    if not faults:
        yield green("start.model", f"the model of {case.initial}, {count_parameters(there):,} parameters")


def check_positions(case: Case) -> Iterator[Finding]:
    """The length that an export will claim is the model's, not that of the training sequences."""
    if _needed(case) is None or case.initial_model is None:
        return
    there, ours = case.initial_model[0].max_position_embeddings, case.config.model.max_position_embeddings
    if ours < there:
        yield yellow(
            "start.positions",
            f"model.max_position_embeddings ({ours}) is below the {there} of {case.initial}: exports would claim less than the "
            f"model can read (data.sequence_length is {case.config.data.sequence_length}); set {there}, or allow start.positions",
            "LumiOpen/poro2-scripts-dev, saver_llama_mistral.py",
        )
    else:
        yield green("start.positions", f"{ours} positions, as the start checkpoint")


def _padding(case: Case, line: str) -> str:
    padded = (
        line.startswith("model.vocab_size")
        and case.initial_model
        and case.config.model.vocab_size > case.initial_model[0].vocab_size
    )
    return ": rows that pad the vocabulary belong to no model, the engine adds its own" if padded else ""


def check_precision(case: Case) -> Iterator[Finding]:
    """fp32 weights for a bf16 run are twice the bytes that every start reads."""
    path = _needed(case)
    if path is None or case.initial_model is None or (path / "state.json").is_file():
        return
    width = sum(file.stat().st_size for file in path.glob("*.distcp")) / count_parameters(case.initial_model[0])
    if case.config.training.precision == "bf16" and width > 3:
        yield yellow(
            "start.precision",
            f"checkpoint.initial: {path} holds {width:.1f} bytes a parameter, fp32, and training.precision is bf16: twice the "
            "size; `poro convert to-megatron --dtype bf16`",
        )
    else:
        yield green("start.precision", f"{width:.1f} bytes a parameter for training.precision ({case.config.training.precision})")


def check_optimizer(case: Case) -> Iterator[Finding]:
    """A start takes weights alone. From a training checkpoint that drops moments and schedule: a resume is what was meant."""
    path = case.initial
    if path is None:
        return
    if path.resolve().is_relative_to(case.directory.resolve()):
        yield red(
            "start.optimizer",
            f"checkpoint.initial ({path}) lies in run_directory ({case.directory}): a start from there drops Adam's moments and "
            "the schedule, and the warm-up begins again. Give the converted base model; the run finds its own checkpoints",
        )
    elif (path / "state.json").is_file() and not case.checkpoints:
        step = read_json(path / "state.json").get("step", 0)
        yield yellow(
            "start.optimizer",
            f"checkpoint.initial ({path}) is a training checkpoint of step {step}: its Adam moments and schedule are dropped, "
            "and the warm-up begins again; to go on with it, keep its run_directory",
        )
    else:
        yield green(
            "start.optimizer", "nothing is dropped: resumes take weights, moments and schedule from the run's own checkpoints"
        )


def _needed(case: Case) -> Path | None:
    """The start checkpoint where the run will read it, and it is one."""
    path = case.initial
    return path if path and not case.checkpoints and (path / ".metadata").is_file() else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none. Raises OSError, or CheckpointError where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy or convert it again") from None
    return content if isinstance(content, dict) else {}
