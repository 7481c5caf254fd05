"""How long `poro check` takes on a login node, at the size of a real run.

    PYTHONPATH=. python benchmarks/preflight.py --folder SCRATCH [--documents 2000000] [--rounds 5]

Poro 2's 8B recipe on 8 sources of so many documents each, 166 billion tokens in all: every .idx whole, every .bin a hole, a
manifest beside each. Seconds of the command from its start to its exit, and of a process that only loads what the command loads;
medians of the rounds, in turn. The last line is JSON.
"""

import sys

sys.path.pop(0)  # this folder: its tokenize.py must not stand in for the standard library's

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np
import tomli_w

from data_indexing.format import Header, bin_path, idx_path, pack_header
from data_indexing.manifest import Counts, Manifest, Policy, TokenizerRecord, file_sha256, save_manifest

NUM_SOURCES = 8
TOKENS = 166e9 / NUM_SOURCES
DTYPE = np.dtype(np.int32)
LOADING = "import megatron_poro.cli.main, megatron_poro.preflight.check, megatron_poro.preflight.node"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder; files in it are reused")
    parser.add_argument("--documents", type=int, default=2_000_000, help="documents of each source (default: 2,000,000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    run_file = write_run(args.folder, args.documents)
    check = [sys.executable, "-m", "megatron_poro", "check", str(run_file), "--cluster", "lumi", "--nodes", "8", "--json"]
    rounds = [(seconds_of([sys.executable, "-c", LOADING]), seconds_of(check)) for _ in range(args.rounds)]
    loading, checking = (statistics.median(column) for column in zip(*rounds, strict=True))
    answer = subprocess.run(check, capture_output=True, text=True, check=False)
    findings = json.loads(answer.stdout)["findings"]
    print(
        f"{NUM_SOURCES} sources of {args.documents:,} documents: {len(findings)} findings in {checking:.2f} s, {loading:.2f} "
        "of them loading Python"
    )
    result = {
        "documents": args.documents,
        "findings": len(findings),
        "seconds": round(checking, 3),
        "loading_seconds": round(loading, 3),
    }
    print(json.dumps(result))


def seconds_of(command: list[str]) -> float:
    """Wall time of a command; its exit code may be that of a run that is not ready."""
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=False)
    return time.perf_counter() - began


def write_run(folder: Path, documents: int) -> Path:
    """The sources, and a run file over them."""
    names = [f"source{n}" for n in range(NUM_SOURCES)]
    for seed, name in enumerate(names):
        write_source(folder / f"{name}-{documents}", seed, documents)
    run = {
        "recipe": "poro2-8b",
        "run_directory": "run",
        "checkpoint": {"initial": "random", "save_every_steps": 500, "keep_last": 5},
        "data": {
            "sources": [{"name": name, "path": f"{name}-{documents}", "weight": 1.0} for name in names],
            "validation": [{"name": name, "source": name, "last_sequences": 512} for name in names],
        },
    }
    path = folder / f"run-{documents}.toml"
    path.write_text(tomli_w.dumps(run))
    return path


def write_source(prefix: Path, seed: int, documents: int) -> None:
    """An .idx of documents of one sequence each, a .bin that is a hole, and a manifest."""
    if idx_path(prefix).exists():
        return
    mean = TOKENS / documents
    lengths = np.random.default_rng(seed).integers(2, max(2 * mean, 4), documents, np.int32)
    with idx_path(prefix).open("wb") as file:
        file.write(pack_header(Header(DTYPE, lengths.size, lengths.size + 1)))
        lengths.tofile(file)
        ((np.cumsum(lengths, dtype=np.int64) - lengths) * DTYPE.itemsize).tofile(file)
        np.arange(lengths.size + 1).tofile(file)
    tokens = int(lengths.sum(dtype=np.int64))
    with bin_path(prefix).open("wb") as file:
        file.truncate(tokens * DTYPE.itemsize)
    manifest = Manifest(
        tokenizer=TokenizerRecord("llama3", "0" * 64, 128_256),
        policy=Policy("document", 0, "document", 0),  # a hole reads as zeros
        dtype=DTYPE.name,
        counts=Counts(documents, tokens, 0, None),
        inputs=(),
        bin_sha256="0" * 63 + str(seed),
        idx_sha256=file_sha256(idx_path(prefix)),
    )
    save_manifest(prefix, manifest)


if __name__ == "__main__":
    main()
