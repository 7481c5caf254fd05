"""Texts that take seconds to make, kept for the next run in the user's cache directory.

A missing, damaged or unwritable cache costs time and nothing else: each file starts with the hash of the rest.
"""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_HASH_CHARACTERS = 64


def cached(key: str, make: Callable[[], str]) -> str:
    """What `make` returns, from the cache if it was made for this key before; the key names everything it depends on."""
    path = cache_directory() / hashlib.sha256(key.encode()).hexdigest()
    found = _read(path)
    if found is None:
        found = make()
        _write(path, found)
    return found


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/megatron_poro, or ~/.cache/megatron_poro."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "megatron_poro"


def _read(path: Path) -> str | None:
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    digest, text = raw[:_HASH_CHARACTERS], raw[_HASH_CHARACTERS:]
    return text.decode() if hashlib.sha256(text).hexdigest().encode() == digest else None


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    raw = text.encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(hashlib.sha256(raw).hexdigest().encode() + raw)
        temporary.rename(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
