"""`files.json` beside a checkpoint's files: size and SHA-256 of each, so that one that changed is named before it is used.

torch opens a damaged tensor file without a word: the zip's own checksums are not looked at.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron_poro.conversion.files import read_json, to_json, write_json
from megatron_poro.errors import ConversionError

CHECKSUMS = "files.json"
FORMAT = 1


def hash_files(directory: Path, names: Iterable[str]) -> dict[str, Any]:
    """Size in bytes and SHA-256 of the named files."""
    return {name: {"bytes": (directory / name).stat().st_size, "sha256": _sha256(directory / name)} for name in sorted(names)}


def write_checksums(directory: Path, hashes: Mapping[str, Any]) -> None:
    """Write `files.json`."""
    write_json(directory / CHECKSUMS, _content(hashes))


def is_as_written(directory: Path) -> bool:
    """Whether `files.json` is what `write_checksums` would write: nothing lists its own checksum."""
    return (directory / CHECKSUMS).read_text(encoding="utf-8") == to_json(_content(read_checksums(directory)))


def _content(hashes: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "files": dict(hashes)}


def read_checksums(directory: Path) -> dict[str, Any]:
    """What `files.json` lists; empty where there is none, as in checkpoints from elsewhere."""
    if not (directory / CHECKSUMS).exists():
        return {}
    listed = read_json(directory / CHECKSUMS).get("files")
    if not isinstance(listed, dict) or not all(
        isinstance(entry, dict) and Path(name).name == name for name, entry in listed.items()
    ):
        raise ConversionError(f"{directory / CHECKSUMS} is damaged; copy it again")
    return listed


def check_small_files(directory: Path) -> None:
    """As `check_files`, but for the tensor files: those are large, hold optimizer state too, and have checksums of their own."""
    check_files(directory, (name for name in sorted(read_checksums(directory)) if not name.endswith(".distcp")))


def check_files(directory: Path, names: Iterable[str] | None = None) -> None:
    """Read the named files (None: all listed ones) and compare. Raises ConversionError naming the first that is not as it was."""
    if problem := find_change(directory, sorted(read_checksums(directory)) if names is None else names):
        raise ConversionError(f"{problem}; move the folder away or copy it again")


def find_change(directory: Path, names: Iterable[str]) -> str:
    """The first of the named files that is not as `files.json` says, and how; empty when all are."""
    listed = read_checksums(directory)
    for name in names:
        path, expected = directory / name, listed[name]
        if not path.is_file():
            return f"{path} is missing, though {CHECKSUMS} lists it"
        if path.stat().st_size != expected.get("bytes") or _sha256(path) != expected.get("sha256"):
            return f"{path} is damaged: it is not what {CHECKSUMS} says"
    return ""


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
