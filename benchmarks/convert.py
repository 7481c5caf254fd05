"""Conversion: time beside `cp`, peak memory against the model's size, and the same work by Megatron-Bridge.

    python benchmarks/convert.py time --folder SCRATCH [--model 8b] [--rounds 3]         (8b takes 50 GB of disk)
    python benchmarks/convert.py memory --folder SCRATCH [--picture memory.png]          (25 GB)
    python benchmarks/convert.py bridge --folder SCRATCH --bridge-python PYTHON \
        --megatron-bridge CHECKOUT --megatron-lm CHECKOUT [--model 1b] [--tokenizer DIR]

Models have random weights in bf16 and the shapes of Llama 3. Contenders come in turn, in fresh processes, each from a source that
is not in the page cache, and each ends with its output on the disk. Peak memory is the resident set of the process, as the kernel
counts it. What Megatron-Bridge needs to run on a CPU stands in benchmarks/megatron_bridge.py.
"""

import sys

sys.path.pop(0)  # this folder: its tokenize.py must not stand in for the standard library's

import argparse
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from megatron_poro.config import ModelConfig
from megatron_poro.conversion import verify
from megatron_poro.conversion.files import OutFile, write_json
from megatron_poro.conversion.hf_config import to_huggingface
from megatron_poro.conversion.safetensors_file import Entry, build_header
from megatron_poro.conversion.table import pieces

LLAMA3 = {"num_key_value_heads": 8, "vocab_size": 128256, "rope_scaling_factor": 8.0}
MODELS = {
    "1b": ModelConfig(num_layers=16, hidden_size=2048, ffn_hidden_size=8192, num_attention_heads=32, **LLAMA3),
    "3b": ModelConfig(num_layers=28, hidden_size=3072, ffn_hidden_size=8192, num_attention_heads=24, **LLAMA3),
    "8b": ModelConfig(num_layers=32, hidden_size=4096, ffn_hidden_size=14336, num_attention_heads=32, **LLAMA3),
    "70b-deep": ModelConfig(num_layers=80, hidden_size=1024, ffn_hidden_size=3584, num_attention_heads=16, **LLAMA3),
    "70b-wide": ModelConfig(num_layers=2, hidden_size=8192, ffn_hidden_size=28672, num_attention_heads=64, **LLAMA3),
}
"""70B does not fit the disks of small machines: one model has its layers, the other its width."""
SHARD_BYTES = 5 * 10**9
LAUNCHER = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""The kernel's peak of a process begins with that of the one that started it, so a small one starts it."""


class Cost(NamedTuple):
    """What a process took."""

    seconds: float
    peak_mb: float


def main() -> None:
    """Run the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("time", "memory", "bridge"))
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder; models that are made stay there")
    parser.add_argument("--model", choices=MODELS, help="default: 8b, or 1b beside Megatron-Bridge")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--bridge-python", type=Path)
    parser.add_argument("--megatron-bridge", type=Path)
    parser.add_argument("--megatron-lm", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder whose files Megatron-Bridge wants beside the model")
    args = parser.parse_args()
    {"time": measure_time, "memory": measure_memory, "bridge": measure_bridge}[args.part](args)


def make_model(folder: Path, name: str) -> Path:
    """A Hugging Face directory of random bf16 numbers of ordinary size."""
    directory = folder / name
    if directory.exists():
        return directory
    directory.mkdir(parents=True)
    entries = [
        Entry(tensor, shape, torch.bfloat16)
        for piece in pieces(MODELS[name])
        for tensor, shape in zip(piece.names, piece.shapes(MODELS[name]), strict=True)
    ]
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if sum(each.num_bytes for each in shards[-1]) + entry.num_bytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(entry)
    random = np.random.Generator(np.random.SFC64(7))
    places = {}
    for number, shard in enumerate(filter(None, shards), 1):
        path = directory / f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_shard(path, shard, random)
        places |= {entry.name: path.name for entry in shard}
    write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    write_json(directory / "config.json", to_huggingface(MODELS[name], {}, torch.bfloat16))
    return directory


def write_shard(path: Path, shard: Sequence[Entry], random: np.random.Generator) -> None:
    """Sign and fraction are random, the exponent makes about 0.01 of each number."""
    with OutFile(path) as file:
        file.write(build_header(shard))
        for entry in shard:
            left = entry.num_bytes // 2
            while left:
                count = min(left, 2**24)
                numbers = random.integers(0, 2**64, -(-count // 4), dtype=np.uint64).view(np.uint16)[:count]
                numbers &= 0x807F
                numbers |= 0x3C00
                file.write(numbers.data.cast("B"))
                left -= count


def run(command: Sequence[str | Path], source: Path, out: Path, **environment: str) -> Cost:
    """Run a command that makes `out` of `source`, the one new and the other not in memory, up to its last byte on the disk."""
    shutil.rmtree(out, ignore_errors=True)
    drop_cache(source)
    began = time.monotonic()
    launcher = [sys.executable, "-S", "-c", LAUNCHER, *map(str, command)]
    done = subprocess.run(launcher, stdout=subprocess.PIPE, env=os.environ | environment, text=True, check=False)
    flush(out)
    seconds = time.monotonic() - began
    if done.returncode:
        sys.exit(f"{command[0]}: failed")
    return Cost(seconds, int(done.stdout.split()[-1]) / 1024)


def drop_cache(directory: Path) -> None:
    """Have the kernel forget the files' pages."""
    for path in filter(Path.is_file, directory.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def flush(directory: Path) -> None:
    """Return once the files are on the disk."""
    for path in filter(Path.is_file, directory.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def poro(*words: str | Path) -> list[str | Path]:
    """`poro convert WORDS`, which flushes what it writes."""
    return [sys.executable, "-m", "megatron_poro", "convert", *words]


def measure_time(args: argparse.Namespace) -> None:
    """Each direction with and without the proof, in units of `cp -r` of the source and fsync."""
    source = make_model(args.folder, args.model or "8b")
    copy, megatron, back = (args.folder / name for name in ("copy", "megatron", "back"))
    costs: dict[str, list[Cost]] = {}
    for _ in range(args.rounds):
        contenders: list[tuple[str, list[str | Path], Path, Path]] = [("cp -r", ["cp", "-r", source, copy], source, copy)]
        for proof in ("--no-proof", "--proof"):
            contenders += [
                (f"to-megatron {proof}", poro("to-megatron", source, megatron, proof), source, megatron),
                (f"to-hf {proof}", poro("to-hf", megatron, back, proof), megatron, back),
            ]
        for name, command, start, end in contenders:
            costs.setdefault(name, []).append(run(command, start, end))
            shutil.rmtree(copy, ignore_errors=True)
        shutil.rmtree(megatron)
    print_costs(costs, source, base="cp -r")
    different = verify(source, back, workers=2)
    print(f"round trip: {different or 'all tensors are bit for bit the same'}")
    shutil.rmtree(back)


def measure_memory(args: argparse.Namespace) -> None:
    """Peak memory of both directions for each model, and a plot of it."""
    peaks: dict[str, tuple[float, float, float]] = {}
    for name in MODELS:
        source = make_model(args.folder, name)
        there = run(poro("to-megatron", source, args.folder / "megatron"), source, args.folder / "megatron")
        back = run(poro("to-hf", args.folder / "megatron", args.folder / "back"), args.folder / "megatron", args.folder / "back")
        peaks[name] = (size_of(source) / 1e9, there.peak_mb, back.peak_mb)
        print(
            f"{name:<10} {peaks[name][0]:6.2f} GB   to-megatron {there.peak_mb:6.0f} MB   to-hf {back.peak_mb:6.0f} MB", flush=True
        )
        for path in ("megatron", "back", *([name] if name not in ("1b", "8b") else [])):
            shutil.rmtree(args.folder / path)
    if args.picture:
        plot(peaks, args.picture)


def plot(peaks: dict[str, tuple[float, float, float]], picture: Path) -> None:
    """Model size against peak memory, with the line on which they are equal."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    sizes = [size for size, _, _ in peaks.values()]
    axes.plot([0, max(sizes)], [0, max(sizes)], "--", color="grey", label="the whole model in memory")
    for label, column in (("to-megatron", 1), ("to-hf", 2)):
        axes.plot(sizes, [row[column] / 1000 for row in peaks.values()], "o", label=label)
    for number, (name, (size, peak, _)) in enumerate(peaks.items()):
        axes.annotate(name, (size, peak / 1000), textcoords="offset points", xytext=(4, 6 + 12 * (number % 2)))
    axes.set(xlabel="model, GB", ylabel="peak memory, GB", xlim=(0, None), ylim=(0, 6))
    axes.legend()
    figure.savefig(picture, dpi=120, bbox_inches="tight")


def measure_bridge(args: argparse.Namespace) -> None:
    """Both directions by ours, with the proof, and by Megatron-Bridge on the CPU, in turn."""
    if not (args.bridge_python and args.megatron_bridge and args.megatron_lm):
        print("skipped: give --bridge-python, --megatron-bridge and --megatron-lm")
        return
    source = make_model(args.folder, args.model or "1b")
    for path in args.tokenizer.iterdir() if args.tokenizer else ():
        if path.name not in ("config.json",) and path.suffix != ".safetensors":
            shutil.copyfile(path, source / path.name)
    driver = Path(__file__).with_name("megatron_bridge.py")
    bridge = [args.bridge_python, driver, "--bridge", args.megatron_bridge, "--megatron-lm", args.megatron_lm]
    copy, ours, ours_back, theirs, theirs_back = (
        args.folder / name for name in ("copy", "megatron", "back", "bridge", "bridge-back")
    )
    contenders: list[tuple[str, list[str | Path], Path, Path]] = [
        ("cp -r", ["cp", "-r", source, copy], source, copy),
        ("to-megatron", poro("to-megatron", source, ours), source, ours),
        ("to-hf", poro("to-hf", ours, ours_back), ours, ours_back),
        ("Megatron-Bridge import", [*bridge, "import", source, theirs], source, theirs),
        ("Megatron-Bridge export", [*bridge, "export", theirs, theirs_back, "--reference", source], theirs, theirs_back),
    ]
    costs: dict[str, list[Cost]] = {}
    for _ in range(args.rounds):
        for name, command, start, end in contenders:
            # The peer's byte code is compiled once, as in an installation.
            costs.setdefault(name, []).append(run(command, start, end, PYTHONDONTWRITEBYTECODE=""))
    print_costs(costs, source, base="cp -r")
    for name, path in (("ours", ours_back), ("Megatron-Bridge", theirs_back)):
        print(f"{name}, there and back: {verify(source, path) or 'all tensors are bit for bit the same'}")
    for path in (copy, ours, ours_back, theirs, theirs_back):
        shutil.rmtree(path)


def print_costs(costs: dict[str, list[Cost]], source: Path, *, base: str) -> None:
    """Seconds, multiples of the base in the same round, and memory."""
    middle: Callable[[list[float]], float] = statistics.median
    print(f"{source.name}: {size_of(source) / 1e9:.2f} GB, load {os.getloadavg()[0]:.1f}")
    for name, rows in costs.items():
        seconds = [row.seconds for row in rows]
        ratios = [row.seconds / first.seconds for row, first in zip(rows, costs[base], strict=True)]
        spread = f"[{min(seconds):.1f}-{max(seconds):.1f}]"
        times = f"x {base} {middle(ratios):5.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
        print(f"  {name:<26} {middle(seconds):6.1f} s {spread:<14} {times}   peak {max(row.peak_mb for row in rows):6.0f} MB")


def size_of(directory: Path) -> int:
    """Bytes of a directory's files."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
