"""Token files and their manifests: there, readable, in agreement; hashed where that is cheap, all of it with --hash."""

from collections.abc import Iterator
from pathlib import Path

from data_indexing.errors import DataError
from data_indexing.format import bin_path, idx_path, manifest_path, unpublished_path
from data_indexing.manifest import Manifest, file_sha256, load_manifest
from data_indexing.reader import IndexedReader
from data_indexing.verify import verify
from megatron_poro.preflight.case import Case
from megatron_poro.preflight.findings import Finding, green, red, yellow

CHEAP_BYTES = 64 * 2**20
"""Files up to this size are hashed without being asked to: a tenth of a second each."""


def check_files(case: Case) -> Iterator[Finding]:
    """Each pair opens; with --hash every token is looked at."""
    faults = [finding for key, path in case.pairs.items() for finding in _check_pair(key, path, case.reads_all)]
    yield from faults
    if not any(finding.colour == "red" for finding in faults):
        yield green("data.files", f"{len(case.pairs)} pairs{', every token read' if case.reads_all else ''}")


def _check_pair(key: str, path: str, reads_all: bool) -> Iterator[Finding]:
    try:
        IndexedReader(path).close()
        if reads_all:
            faults = verify(path).faults
            yield from (
                red("data.files", f"{key}: {path}: {fault.name}: {fault.detail}; write or copy it again") for fault in faults
            )
    except DataError as error:
        yield red("data.files", f"{key}: {error}{_hint(path)}")
    except OSError as error:
        yield red("data.files", f"{key}: {error.filename}: {error.strerror}; check who may read it")


def _hint(path: str) -> str:
    """What else lies there that explains a missing pair."""
    if unpublished_path(path).exists():
        return f"; {unpublished_path(path)} holds an output that is not complete: run `poro data tokenize` again"
    return ""


def check_manifests(case: Case) -> Iterator[Finding]:
    """Each pair's manifest agrees with it: counts and type always, hashes of small files."""
    good = 0
    for key, path in case.pairs.items():
        try:
            manifest = load_manifest(path)
            fault = _fault_of(path, manifest) if manifest else ""
        except (DataError, OSError) as error:
            yield red("data.manifests", f"{key}: {error}")
            continue
        if manifest is None and not idx_path(path).exists():
            continue  # `data.files` says that
        if manifest is None:
            yield yellow(
                "data.manifests",
                f"{key}: {manifest_path(path)} is missing: tokenizer, policy and origin of its tokens are not known; `poro data "
                "tokenize` writes it",
            )
        elif fault:
            yield red("data.manifests", f"{key}: {fault}; copy all three files again")
        else:
            good += 1
    if good == len(case.pairs):
        yield green("data.manifests", f"{good} manifests agree with their files")


def _fault_of(path: str, manifest: Manifest) -> str:
    """The first thing in which a manifest and its files differ; empty where they cannot be opened, which `data.files` says."""
    try:
        with IndexedReader(path) as reader:
            facts = [
                ("tokens", manifest.counts.num_tokens, reader.num_tokens),
                ("documents", manifest.counts.num_documents, reader.num_documents),
                ("dtype", manifest.dtype, reader.dtype.name),
            ]
    except (DataError, OSError):
        return ""
    for file, digest in ((idx_path(path), manifest.idx_sha256), (bin_path(path), manifest.bin_sha256)):
        facts += [(f"sha256 of {file.name}", digest, file_sha256(file))] if _is_small(file) else []
    return next((f"{path}: {name}: {found}, but the manifest says {said}" for name, said, found in facts if said != found), "")


def _is_small(path: Path) -> bool:
    return path.stat().st_size <= CHEAP_BYTES
