"""Go through folders and globs without missing a file: links are followed, each folder is entered once, none is skipped.

The standard library passes over folders that it cannot read, and either follows no links or goes round in their circles.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from data_indexing.errors import DataError


def walk(folder: Path) -> Iterator[Path]:
    """All that is in a folder and those below it, but the folders, by name; also links that lead nowhere."""
    return (path for path in _descend(folder, set()) if not path.is_dir())


def expand(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Matches of a glob, given part by part, by name; one may come several times. `**` is any number of folders, or none."""
    if not parts:
        yield folder
    elif parts[0] == "**":
        for inner in _folders(folder):
            yield from expand(inner, parts[1:] or ["*"])
    elif glob.has_magic(parts[0]):
        for entry in _entries(folder):
            if fnmatchcase(entry.name, parts[0]) and (parts[0].startswith(".") or not entry.name.startswith(".")):
                yield from expand(entry, parts[1:])
    elif os.path.lexists(folder / parts[0]):
        yield from expand(folder / parts[0], parts[1:])


def _folders(folder: Path) -> Iterator[Path]:
    yield folder
    for path in _descend(folder, set()):
        if path.is_dir() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _descend(folder: Path, entered: set[tuple[int, int]]) -> Iterator[Path]:
    """Everything below a folder; the contents of a folder come once, however many links lead there."""
    for entry in _entries(folder, entered):
        yield entry
        yield from _descend(entry, entered)


def _entries(folder: Path, entered: set[tuple[int, int]] | None = None) -> list[Path]:
    """What a folder holds, by name; nothing for a file, or for a folder that was entered before."""
    try:
        if not folder.is_dir():
            return []
        if entered is not None:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered:
                return []
            entered.add((status.st_dev, status.st_ino))
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}; make the folder readable, or give the files beside it") from None
