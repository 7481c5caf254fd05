"""How fast shards are merged, beside `cp` + fsync of the same bytes and Megatron's own merge.

python benchmarks/merge.py [--megatron-lm CHECKOUT] [--shards 8] [--shard-mb 256] [--rounds 3] [--folder DIR]

The contenders alternate in one run, each a process of its own that first drops its inputs from the page cache, does not count
its imports, and ends with its output on the disk. Megatron is the installed package, or the checkout's tools/merge_datasets.py.
"""

import sys

sys.path.pop(0)  # this folder: its tokenize.py must not stand in for the standard library's


import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_indexing.manifest import Counts, Manifest, file_sha256
from data_indexing.writer import IndexedWriter

_BEGIN = """
import glob, os, runpy, shutil, subprocess, sys, time
source, target = sys.argv[1:3]
def fsync(path):
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
inputs = sorted(glob.glob(source + "/*.bin"))
"""
_CP = """
start = time.perf_counter()
for path in inputs:
    subprocess.run(["cp", path, target + "-" + os.path.basename(path)], check=True)
    fsync(target + "-" + os.path.basename(path))
"""
_OURS = """
from pathlib import Path
from data_indexing.merge import find_pairs, merge
start = time.perf_counter()
merge(find_pairs(Path(source)), target, shuffle_seed={seed})
"""
_PACKAGE = """
import numpy
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
start = time.perf_counter()
builder = IndexedDatasetBuilder(target + ".bin", dtype=numpy.int32)
for path in inputs:
    builder.add_index(path[:-4])
builder.finalize(target + ".idx")
fsync(target + ".bin")
fsync(target + ".idx")
"""
_TOOL = """
sys.path.insert(0, {checkout!r})
import megatron.core.datasets.indexed_dataset
sys.argv[1:] = ["--input", source, "--output-prefix", target]
start = time.perf_counter()
runpy.run_path({checkout!r} + "/tools/merge_datasets.py", run_name="__main__")
fsync(target + ".bin")
fsync(target + ".idx")
"""
_COLD = """
for path in glob.glob(source + "/*"):
    fsync(path)
"""
_END = """
seconds = time.perf_counter() - start
# The peak that the kernel reports to a parent would begin with the parent's own.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("seconds and peak in kB:", seconds, peak)
"""


def main() -> None:
    """Generate the shards, let the contenders run and print the table."""
    args = _arguments()
    programs = {"cp + fsync": _CP, "merge": _OURS.format(seed=None), "merge --shuffle": _OURS.format(seed=1234)}
    programs["Megatron"] = _TOOL.format(checkout=str(args.megatron_lm.resolve())) if args.megatron_lm else _PACKAGE
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        num_bytes = sum(_generate(folder / "in", args.shards, args.shard_mb))
        results: dict[str, list[tuple[float, float]]] = {contender: [] for contender in programs}
        hashes: dict[str, set[str]] = {contender: set() for contender in programs}
        for number in range(args.rounds):
            for contender, program in programs.items():
                results[contender].append(_run(program, folder))
                hashes[contender].add(" ".join(file_sha256(path) for path in sorted(folder.glob("out/m.[bi]*"))))
                rate = num_bytes / results[contender][-1][0] / 1e9
                print(f"round {number + 1}: {contender}: {rate:.2f} GB/s, load {os.getloadavg()[0]:.1f}", flush=True)
    if hashes["merge"] != hashes["Megatron"] or any(len(found) != 1 for found in hashes.values()):
        sys.exit("the merges are not byte-identical")
    _print_table(results, num_bytes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megatron-lm", type=Path, help="checkout whose tool is run (default: the installed package)")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--shard-mb", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=".", help="where the shards are made and merged: the disk that is measured")
    return parser.parse_args()


def _generate(folder: Path, shards: int, shard_mb: int) -> Iterator[int]:
    """Shards with manifests, random ids below 128,256 in documents of 1,000 tokens on average; yields the bytes of each."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(shards):
        lengths = rng.lognormal(6.4, 1.0, shard_mb * 250).astype(np.int64) + 1
        with IndexedWriter(folder / f"{number:04}", np.int32) as writer:
            for part in np.array_split(lengths, max(1, shard_mb // 16)):
                writer.add_documents(rng.integers(0, 128_256, part.sum(), np.int32), part)
            writer.seal()
            writer.add_manifest(_manifest(writer))
        yield writer.num_tokens * 4


def _manifest(writer: IndexedWriter) -> Manifest:
    """What ours compares with what it reads."""
    counts = Counts(writer.num_documents, writer.num_tokens, None, None)
    hashes = {"bin_sha256": writer.bin_sha256, "bin_crc32": writer.bin_crc32, "idx_sha256": writer.idx_sha256}
    return Manifest(tokenizer=None, policy=None, dtype=writer.dtype.name, counts=counts, inputs=(), **hashes)


def _run(program: str, folder: Path) -> tuple[float, float]:
    """Seconds and the peak of memory in MB."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir()
    os.sync()
    code = _BEGIN + _COLD + program + _END
    command = [sys.executable, "-c", code, str(folder / "in"), str(folder / "out" / "m")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"failed with {done.returncode}:\n{done.stderr}")
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), int(peak) / 1e3


def _print_table(results: dict[str, list[tuple[float, float]]], num_bytes: int) -> None:
    print(f"\n{num_bytes / 1e9:.2f} GB of tokens; medians over the rounds [slowest - fastest]; the merges are byte-identical\n")
    print("| | GB/s | of cp | peak memory, MB |\n|---|---|---|---|")
    for contender, runs in results.items():
        rates = sorted(num_bytes / seconds / 1e9 for seconds, _ in runs)
        ratios = [cp / seconds for (cp, _), (seconds, _) in zip(results["cp + fsync"], runs, strict=True)]
        memory = "" if contender == "cp + fsync" else f"{max(peak for _, peak in runs):.0f}"
        spread = f"[{rates[0]:.2f} - {rates[-1]:.2f}]"
        print(f"| {contender} | {statistics.median(rates):.2f} {spread} | {statistics.median(ratios):.2f} | {memory} |")


if __name__ == "__main__":
    main()
