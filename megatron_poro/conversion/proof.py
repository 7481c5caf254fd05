"""The proof of a conversion: both sides opened again from disk and hashed tensor by tensor; `conversion.json`."""

import hashlib
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from data_indexing.progress import Advance, progress
from megatron_poro import __version__
from megatron_poro.config.sameness import differing_keys
from megatron_poro.conversion.hf_config import ignored_keys
from megatron_poro.conversion.huggingface import HuggingFaceModel
from megatron_poro.conversion.verify import check_sums, checked_bytes, compare, hash_weights
from megatron_poro.conversion.weights import Cast, Weights, total_bytes
from megatron_poro.errors import ConversionError

PROOF = "conversion.json"
FORMAT = 2


@dataclass(frozen=True)
class Effort:
    """How a conversion works: threads, and whether it is proved."""

    workers: int = 2
    proof: bool = True


PROVED = Effort()


class Conversion:
    """The progress, times and proof of one conversion; a context manager that shows the progress."""

    def __init__(self, what: str, source: Weights, effort: Effort) -> None:
        self.source, self.effort = source, effort
        self._uncast = source.source if isinstance(source, Cast) else source
        size = total_bytes(source)
        proof = 2 * size + checked_bytes(source) + (total_bytes(self._uncast) if self._uncast is not source else 0)
        self._bar = progress(what, total=size + (proof if effort.proof else 0), unit="B")
        self._started = time.monotonic()

    def __enter__(self) -> "Conversion":
        self.advance: Advance = self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def prove(self, target: Weights, out: Path) -> dict[str, Any]:
        """The content of `conversion.json`; raises ConversionError naming the first tensor that did not come out as it went in."""
        written = time.monotonic()
        hashes = self._compare(target) if self.effort.proof else {}
        origin = {name: pair[0] for name, pair in hashes.items()}
        if hashes and self._uncast is not self.source:
            origin = hash_weights(self._uncast, workers=self.effort.workers, advance=self.advance)
        seconds = {"write": written - self._started, "prove": time.monotonic() - written}
        return {
            "format": FORMAT,
            "proved": bool(hashes),
            "source": {"name": name_of(self.source.directory), "weights_sha256": hash_all(origin)},
            "target": {"name": out.name, "weights_sha256": hash_all({name: pair[1] for name, pair in hashes.items()})},
            "cast": str(self.source.to).removeprefix("torch.") if isinstance(self.source, Cast) else None,
            "ignored_config_keys": ignored_keys(self.source.directory) if isinstance(self._uncast, HuggingFaceModel) else {},
            "tensors": {name: pair[1] for name, pair in hashes.items()},
            "versions": versions(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": {name: round(took, 3) for name, took in seconds.items()},
        }

    def _compare(self, target: Weights) -> dict[str, tuple[str, str]]:
        workers = self.effort.workers
        check_sums(self.source, workers=workers, advance=self.advance)
        hashes, different = compare(self.source, target, workers=workers, advance=self.advance)
        different = differing_keys(self.source.model, target.model) + different
        if different:
            raise ConversionError(
                f"{target.directory} does not read back as it was written ({different[0]}; {len(different)} in all); "
                "check memory and disk, then convert again"
            )
        return hashes


def name_of(directory: Path) -> str:
    """A directory's name, with its parent's where it is an iteration of Megatron-LM's."""
    directory = directory.resolve()
    iteration = directory.name == "release" or directory.name.startswith("iter_")
    return f"{directory.parent.name}/{directory.name}" if iteration else directory.name


def hash_all(hashes: Mapping[str, str]) -> str | None:
    """One hash over the names and hashes of all tensors: that of the model, in whatever format it lies."""
    lines = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest() if hashes else None


def versions() -> dict[str, str]:
    """What wrote a conversion."""
    return {
        "megatron_poro": __version__,
        "torch": torch.__version__,
        "safetensors": version("safetensors"),
        "python": platform.python_version(),
    }
