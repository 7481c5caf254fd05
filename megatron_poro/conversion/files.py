"""Files that appear whole or not at all, and JSON that blames the file it came from."""

import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from megatron_poro.errors import ConversionError


@contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yield a new directory beside `target` that takes its name when the block succeeds and vanishes when it fails.

    Raises ConversionError when `target` exists.
    """
    if os.path.lexists(target):
        raise ConversionError(f"{target} exists; choose another output or remove it first")
    _remove_leftovers(target)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        flush_directory(partial)
        partial.rename(target)
        flush_directory(target.parent)
    except OSError as error:
        raise ConversionError(f"{error.filename or target}: {error.strerror}; free space or choose another output") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_leftovers(target: Path) -> None:
    """Remove what killed conversions to this target left; those of processes that live are theirs."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        process = leftover.name.rpartition("-")[2]
        if process.isdecimal() and not Path("/proc", process).exists():
            shutil.rmtree(leftover, ignore_errors=True)


def flush_to_disk(file: BinaryIO) -> None:
    """Return once the file's bytes are on the disk; what is read back afterwards comes from there, not from memory."""
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def flush_directory(directory: Path) -> None:
    """Return once the directory's entries and its small files are on the disk."""
    for path in (*filter(Path.is_file, directory.iterdir()), directory):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ConversionError when it is missing, damaged or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}; give a directory that holds {path.name}") from None
    except ValueError as error:
        raise ConversionError(f"{path} is no JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds no JSON object; copy it again")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an indented JSON object."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def plain_file(directory: Path, name: object, *, named_by: str) -> Path:
    """The file `name` of `directory`. Raises ConversionError when it is not a plain name, or no such file is there."""
    if not isinstance(name, str) or not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ConversionError(f"{directory / named_by} names {name!r}, which is no file of the folder; do not trust this folder")
    path = directory / name
    if not path.is_file():
        raise ConversionError(f"{path} is missing, though {named_by} names it; copy it again")
    return path
