"""The chain of proofs of a run, from its token files to its newest checkpoint, each link looked up on the disk.

A link says `good`, `missing` or `bad`, or `unread` for files whose sizes are right but whose contents nobody read: hashing what a
large run keeps takes hours, so only so many bytes of it are read, newest first.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_indexing.errors import DataError
from data_indexing.format import bin_path
from data_indexing.manifest import file_sha256, load_manifest
from megatron_poro.config import RANDOM
from megatron_poro.engine.paths import is_complete, list_checkpoints, read_state
from megatron_poro.errors import CheckpointError
from megatron_poro.report.run import Run

READ_BYTES = 2**28
"""What is read to compare hashes, unless all is asked for: about a second's work."""
SHOWN = 12
"""So many hexadecimal digits of a hash are shown."""


@dataclass(frozen=True)
class Link:
    """One thing that is proved or not: `kind` is `good`, `unread`, `missing` or `bad`, `text` says what was found."""

    what: str
    kind: str
    text: str


@dataclass(frozen=True)
class Chain:
    """The links in the order in which a run comes about."""

    tokens: list[Link]
    initial: list[Link]
    checkpoints: list[Link]


def find_chain(run: Run, read_bytes: float = READ_BYTES) -> Chain:
    """The chain of a run. Files of checkpoints are hashed up to `read_bytes` in all."""
    found = list_checkpoints(run.directory)
    state = _newest_state(found)
    return Chain(
        [_tokens(source.name, source.path, state) for source in run.config.data.sources] if run.config else [],
        [_initial(run.config.checkpoint.initial, found)] if run.config else [],
        [*_checkpoints(found, read_bytes), *_leftovers(run.directory)],
    )


def _newest_state(checkpoints: list[Path]) -> dict[str, Any]:
    for checkpoint in reversed(checkpoints):
        try:
            return read_state(checkpoint)
        except CheckpointError:
            continue
    return {}


def _tokens(name: str, prefix: str, state: dict[str, Any]) -> Link:
    """A source's manifest, and whether the run's checkpoints say that they read what it describes."""
    try:
        manifest = load_manifest(prefix)
    except (DataError, OSError) as error:
        return Link(name, "bad", str(error))
    there = bin_path(prefix).exists()
    if manifest is None:
        return Link(name, "missing", f"{prefix}.json is missing" + ("" if there else ", and so are the token files"))
    tokenizer = f", tokenizer {manifest.tokenizer.name}" if manifest.tokenizer else ""
    text = f"{manifest.counts.num_tokens:,} tokens{tokenizer}, SHA-256 {manifest.bin_sha256[:SHOWN]}"
    read = next((source["content"] for source in state.get("data", {}).get("sources", ()) if source["name"] == name), None)
    if read is None:
        return Link(name, "unread", f"{text}; no checkpoint says yet that it was read")
    if f"sha256:{manifest.bin_sha256}" not in read:
        return Link(name, "bad", f"{text}; the run read another content")
    return Link(name, "good", f"{text}, which is what the run read" + ("" if there else "; the token files are gone from here"))


def _initial(initial: str, checkpoints: list[Path]) -> Link:
    """Where the weights began: the conversion's proof, and whether the checkpoints name the same source."""
    if initial == RANDOM:
        return Link("random", "good", "random weights, drawn from training.seed")
    path, name = Path(initial), Path(initial).name
    if not path.is_dir():
        return Link(name, "missing", f"{initial} is not on this machine")
    source = _read_json(path / "model.json").get("source", {})
    kept = [_read_json(checkpoint / "model.json").get("source", {}) for checkpoint in checkpoints]
    if any(other != source for other in kept):
        return Link(
            name, "bad", f"{initial} comes from {_name(source)}; the run's checkpoints say they come from {_name(kept[-1])}"
        )
    proof = _read_json(path / "conversion.json")
    if not proof:
        kind = "good" if is_complete(path) else "missing"
        return Link(name, kind, f"from {_name(source)}; " + ("files.json lists it" if kind == "good" else "no conversion.json"))
    weights = str(proof.get("target", {}).get("weights_sha256") or "")[:SHOWN]
    if not proof.get("proved"):
        return Link(name, "unread", f"from {_name(source)}; converted without proof")
    return Link(name, "good", f"from {_name(source)}, read back and equal tensor by tensor, weights SHA-256 {weights}")


def _name(source: Any) -> str:
    return str(source.get("name", "somewhere") if isinstance(source, dict) else source)


def _checkpoints(found: list[Path], read_bytes: float) -> list[Link]:
    links = []
    for checkpoint in reversed(found):
        size = _size(checkpoint)
        links.append(_checkpoint(checkpoint, read=size <= read_bytes, size=size))
        read_bytes -= size
    return links[::-1]


def _size(checkpoint: Path) -> int:
    listed = _read_json(checkpoint / "files.json").get("files", {})
    return sum(int(entry["bytes"]) for entry in listed.values()) if is_complete(checkpoint) else 0


def _checkpoint(checkpoint: Path, *, read: bool, size: int) -> Link:
    listed: dict[str, Any] = _read_json(checkpoint / "files.json").get("files", {})
    if not listed:
        return Link(checkpoint.name, "missing", "no files.json: nothing to compare with")
    if not is_complete(checkpoint):
        return Link(checkpoint.name, "bad", "a file is missing or has another size than files.json says")
    text = f"{len(listed)} files, {size / 1e9:,.3f} GB"
    if not read:
        return Link(checkpoint.name, "unread", f"{text}; sizes are right, hashes not compared (--hash does it)")
    for name, entry in sorted(listed.items()):
        if file_sha256(checkpoint / name) != entry.get("sha256"):
            return Link(checkpoint.name, "bad", f"{name} is not what files.json says")
    return Link(checkpoint.name, "good", f"{text}; every SHA-256 is right")


def _leftovers(directory: Path) -> list[Link]:
    """Checkpoints that were set aside, and saves that were cut short."""
    folder = directory / "checkpoints"
    aside = [Link(path.name, "bad", "set aside by the run; it was not used") for path in sorted(folder.glob("damaged-*"))]
    return aside + [Link(path.name, "missing", "a save that was not finished") for path in sorted(folder.glob("partial-*"))]


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
