"""The manifest beside a pair: what went in, by which tokenizer and policy, and the hashes of what came out."""

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from data_indexing.errors import DataError
from data_indexing.format import Prefix, manifest_path

FORMAT_VERSION = 1

Placement = Literal["document", "none"]


@dataclass(frozen=True)
class TokenizerRecord:
    """Which tokenizer made the ids; `sha256` is that of its definition."""

    name: str
    sha256: str
    vocab_size: int


@dataclass(frozen=True)
class Policy:
    """Where control tokens stand: `bos_id` opens and `eod_id` closes every document, null where there is none."""

    bos: Placement
    bos_id: int | None
    eod: Placement
    eod_id: int | None


@dataclass(frozen=True)
class Counts:
    """Documents and tokens written, empty documents left out, UTF-8 bytes of text, documents rejected; null is not known.

    What was read is the sum of what was written, left out, rejected and lost by damage: the rows of damaged row groups, and
    one for each compressed file that could not be read to its end, since nobody knows how many.
    """

    num_documents: int
    num_tokens: int
    num_empty_documents: int | None
    num_text_bytes: int | None
    num_rejected_documents: int | None = None
    num_damaged_documents: int | None = None


@dataclass(frozen=True)
class InputFile:
    """A text file as it was read, or the bytes of it that a shard read, from `first_byte` on."""

    name: str
    num_bytes: int
    sha256: str
    first_byte: int = 0


@dataclass(frozen=True)
class Tokenization:
    """How text became tokens: the encoder and its version, the field of the text, the shard (I/N), what is a sequence.

    `inputs_sha256` is that of the names and sizes of all inputs, by which the shards of one whole know each other; null
    is not known.
    """

    encoder: str
    encoder_version: str
    text_field: str
    shard: str
    sequences: Literal["documents", "sentences"]
    inputs_sha256: str | None = None


@dataclass(frozen=True)
class Part:
    """A pair that a merge took in; hashes as its manifest had them, null where it had none."""

    name: str
    num_documents: int
    num_tokens: int
    bin_sha256: str | None
    idx_sha256: str | None


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in ("numpy", "tokenizers")}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All of it; `tokenizer` and `policy` are null where a merge took in pairs without a manifest.

    `tokenization` belongs to a pair made from text, `parts` and `shuffle_seed` to a merge; `shuffle_seed` is null where
    documents stand in the order of the parts. `bin_crc32` is as zlib has it, cheap to compare; older manifests have none.
    """

    format_version: int = FORMAT_VERSION
    tokenizer: TokenizerRecord | None
    policy: Policy | None
    dtype: str
    counts: Counts
    inputs: tuple[InputFile, ...]
    bin_sha256: str
    bin_crc32: int | None = None
    idx_sha256: str
    parts: tuple[Part, ...] = ()
    shuffle_seed: int | None = None
    tokenization: Tokenization | None = None
    versions: dict[str, str] = field(default_factory=_versions)


def save_manifest(prefix: Prefix, manifest: Manifest) -> None:
    """Write PREFIX.json, whole or not at all."""
    path = manifest_path(prefix)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_text(manifest_text(manifest), encoding="utf-8")
    temporary.rename(path)


def manifest_text(manifest: Manifest) -> str:
    """Content of PREFIX.json."""
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
    # The bytes of a file name that are not UTF-8 are lone surrogates in Python: they stay what they are as escapes of JSON.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def load_manifest(prefix: Prefix) -> Manifest | None:
    """Manifest of a pair, None where it has none; DataError where it cannot be understood."""
    path = manifest_path(prefix)
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = raw["format_version"]
        if found == FORMAT_VERSION:
            return _from_json(raw)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: {type(error).__name__}: {error}; restore the manifest or remove it") from None
    raise DataError(f"{path}: manifest version {found}, expected {FORMAT_VERSION}; use the release that wrote it")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in constant memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _from_json(raw: dict[str, Any]) -> Manifest:
    decoded = {
        "tokenizer": TokenizerRecord(**raw["tokenizer"]) if raw["tokenizer"] else None,
        "policy": Policy(**raw["policy"]) if raw["policy"] else None,
        "counts": Counts(**raw["counts"]),
        "inputs": tuple(InputFile(**item) for item in raw["inputs"]),
        "tokenization": Tokenization(**raw["tokenization"]) if raw.get("tokenization") else None,
        "parts": tuple(Part(**item) for item in raw["parts"]),
    }
    return Manifest(**(raw | decoded))
