"""The order of samples at the size of Poro 2: start-up beside megatron-core's, reading beside raw pread, ledger and blend.

    python benchmarks/order.py --folder SCRATCH [--scale 1] [--rounds 3]

Writes 4 sources of 150 million documents and 166 billion tokens in all, divided by --scale: the .idx whole (3 GB at
scale 1), the .bin as a hole. Ours and GPTDataset with BlendedDataset then start from these files in turn, each in a
process of its own. Reading uses real files of 1 GiB. A figure is the median of the rounds, a ratio the median of the ratios
of the rounds.
"""

import sys

sys.path.pop(0)  # this folder: its tokenize.py must not stand in for the standard library's


import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data_indexing.format import Header, bin_path, idx_path, pack_header
from megatron_poro.config import DataConfig, SourceConfig
from megatron_poro.data import TrainingData

LENGTH = 8192
NUM_SAMPLES = 39_458 * 512
TOKENS = {"fi": 50e9, "en": 50e9, "code": 50e9, "math": 16e9}
WEIGHTS = {"fi": 0.3, "en": 0.3, "code": 0.3, "math": 0.1}
NUM_DOCUMENTS = 150e6
DTYPE = np.dtype(np.int32)
BATCH = 8
READ_SAMPLES = 32_768
"""Samples that a reader reads in its turn: 1 GB, more than a processor's caches hold."""


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder; files in it are reused")
    parser.add_argument("--scale", type=int, default=1, help="divides documents, tokens and samples (default: 1)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (default: 3)")
    parser.add_argument("--start", choices=("ours", "peer"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        print(json.dumps(start_ours(args) if args.start == "ours" else start_peer(args)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    write_sources(args)
    measure_start_up(args)
    measure_commands(args)
    measure_reading(args)


def write_sources(args: argparse.Namespace) -> None:
    """Pairs of random document lengths around the mean of Poro 2, with a .bin that is a hole."""
    for seed, (name, tokens) in enumerate(TOKENS.items()):
        prefix = args.folder / f"{name}-{args.scale}"
        if not idx_path(prefix).exists():
            mean = sum(TOKENS.values()) / NUM_DOCUMENTS
            lengths = np.random.default_rng(seed).integers(1, 2 * mean, int(tokens / args.scale / mean), np.int32)
            write_index(prefix, lengths)
            with bin_path(prefix).open("wb") as file:
                file.truncate(int(lengths.sum(dtype=np.int64)) * DTYPE.itemsize)


def write_index(prefix: Path, lengths: np.ndarray) -> None:
    """An .idx whose documents are one sequence each."""
    with idx_path(prefix).open("wb") as file:
        file.write(pack_header(Header(DTYPE, lengths.size, lengths.size + 1)))
        lengths.tofile(file)
        pointers = np.cumsum(lengths, dtype=np.int64)
        pointers -= lengths
        pointers *= DTYPE.itemsize
        pointers.tofile(file)
        np.arange(lengths.size + 1).tofile(file)


def describe(args: argparse.Namespace) -> DataConfig:
    """The data section over these sources."""
    sources = (SourceConfig(name=n, path=f"{args.folder}/{n}-{args.scale}", weight=w) for n, w in WEIGHTS.items())
    return DataConfig(sequence_length=LENGTH, sources=tuple(sources))


def start_ours(args: argparse.Namespace) -> dict[str, float]:
    """Open everything and locate the last batch of the run."""

    def start() -> None:
        last = NUM_SAMPLES // args.scale - BATCH
        assert TrainingData(describe(args)).samples(range(last, last + BATCH)).shape == (BATCH, LENGTH + 1)

    return measure(start)


def start_peer(args: argparse.Namespace) -> dict[str, float]:
    """Build BlendedDataset over GPTDataset as Megatron-LM does and locate the last batch of the run."""
    import torch.distributed
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)

    class Tokenizer:
        vocab_size, eod, eos, pad, special_tokens_dict, unique_identifiers = 128_256, 128_001, 128_001, -1, {}, {}

    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=LENGTH,
        blend=([f"{args.folder}/{name}-{args.scale}" for name in WEIGHTS], list(WEIGHTS.values())),
        split="1,0,0",
        path_to_cache=str(args.folder / "cache"),
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )

    def start() -> None:
        last = NUM_SAMPLES // args.scale - BATCH
        built = BlendedMegatronDatasetBuilder(GPTDataset, [last + BATCH, 0, 0], lambda: True, config).build()[0]
        assert all(built[n]["tokens"].shape == (LENGTH,) for n in range(last, last + BATCH))

    return measure(start)


def measure(start: Callable[[], None]) -> dict[str, float]:
    """Seconds of a call, and the process's memory before it and at its peak, in MB."""
    before = peak_mb()
    began = time.perf_counter()
    start()
    return {"seconds": time.perf_counter() - began, "before_mb": before, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Peak resident memory of this process, in MB; getrusage would count the parent's before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def measure_start_up(args: argparse.Namespace) -> None:
    """Print start-up of ours, of the peer building its index, and of the peer finding it built, in turn."""
    results: dict[str, list[dict[str, float]]] = {"ours": [], "peer, first start": [], "peer, index cached": []}
    for _ in range(args.rounds):
        subprocess.run(["rm", "-rf", str(args.folder / "cache")], check=True)
        for name, start in zip(results, ("ours", "peer", "peer"), strict=True):
            results[name].append(run_start(args, start))
    print(
        f"start-up at 1/{args.scale} of Poro 2: {NUM_DOCUMENTS / args.scale:,.0f} documents, {NUM_SAMPLES // args.scale:,} samples"
    )
    for name, rounds in results.items():
        seconds, before, peak = (statistics.median(r[key] for r in rounds) for key in ("seconds", "before_mb", "peak_mb"))
        print(f"  {name:<20}{seconds:9.3f} s  peak {peak:8.0f} MB, of which {before:.0f} before the start")


def run_start(args: argparse.Namespace, start: str) -> dict[str, float]:
    """One start in a fresh process."""
    command = [sys.executable, __file__, f"--folder={args.folder}", f"--scale={args.scale}", f"--start={start}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure_commands(args: argparse.Namespace) -> None:
    """Print how long `poro data blend` and `ledger` take, from process start to exit."""
    tables = [f'[[data.sources]]\nname = "{s.name}"\npath = "{s.path}"\nweight = {s.weight}\n' for s in describe(args).sources]
    run_file = args.folder / "run.toml"
    training = f'[checkpoint]\ninitial = "random"\n[training]\nsteps = {39_458 // args.scale}\n'
    run_file.write_text(f'recipe = "poro2-8b"\nrun_directory = "run"\n{training}{"".join(tables)}')
    for words in (["blend"], ["ledger"], ["ledger", "--documents"]):
        seconds = []
        for _ in range(args.rounds):
            began = time.perf_counter()
            command = [sys.executable, "-m", "megatron_poro", "data", *words, str(run_file)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seconds.append(time.perf_counter() - began)
        print(f"poro data {' '.join(words)}: {statistics.median(seconds):.2f} s\n{output}")


def measure_reading(args: argparse.Namespace) -> None:
    """Print batches of ours against raw reads of the same bytes in the same order, warm and cold."""
    for seed, name in enumerate(WEIGHTS):
        prefix = args.folder / f"real-{name}"
        if not idx_path(prefix).exists():
            np.random.default_rng(seed).integers(0, 128_000, 1 << 26, np.int32).tofile(bin_path(prefix))
            write_index(prefix, np.full(1 << 16, 1 << 10, np.int32))
    sources = (SourceConfig(name=n, path=f"{args.folder}/real-{n}", weight=w) for n, w in WEIGHTS.items())
    data = TrainingData(DataConfig(sequence_length=LENGTH, sources=tuple(sources)))
    readers = make_readers(args, data)
    files = [bin_path(source.path) for source in data.config.sources]
    readers["ours"]()
    print_rates("warm", time_in_turn(readers, args.rounds * 10, lambda: None))
    print_rates("cold", time_in_turn(readers, args.rounds * 3, lambda: drop_caches(files)))


def make_readers(args: argparse.Namespace, data: TrainingData) -> dict[str, Callable[[], None]]:
    """Functions that read the first READ_SAMPLES samples: two raw loops and ours, which computes their order."""
    where = data.order.locate(0, READ_SAMPLES)
    files = [os.open(bin_path(source.path), os.O_RDONLY) for source in data.config.sources]
    num_bytes = (LENGTH + 1) * DTYPE.itemsize
    places = [
        (files[s], sequence * LENGTH * DTYPE.itemsize)
        for s, sequence in zip(*map(np.ndarray.tolist, (where.sources, where.sequences)), strict=True)
    ]
    rows: list[Any] = list(np.empty((BATCH, LENGTH + 1), DTYPE))

    def pread() -> None:
        for file, offset in places:
            os.pread(file, num_bytes, offset)

    def preadv() -> None:
        for batch in range(0, READ_SAMPLES, BATCH):
            for row, (file, offset) in zip(rows, places[batch : batch + BATCH], strict=True):
                os.preadv(file, [row], offset)

    def ours() -> None:
        for batch in range(0, READ_SAMPLES, BATCH):
            data.samples(range(batch, batch + BATCH))

    return {"pread, discarded": pread, "preadv into one reused batch": preadv, "ours": ours}


def time_in_turn(readers: dict[str, Callable[[], None]], rounds: int, prepare: Callable[[], None]) -> dict[str, list[float]]:
    """Seconds of each reader in each round; who comes first changes."""
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    names = list(readers)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            prepare()
            began = time.perf_counter()
            readers[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def drop_caches(files: list[Path]) -> None:
    """Ask the kernel to forget the files' pages."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def print_rates(state: str, seconds: dict[str, list[float]]) -> None:
    """Rates, and ours as a share of each raw loop."""
    ours = np.array(seconds["ours"])
    print(f"batches of {BATCH} x {LENGTH + 1} int32, {state}")
    for name, times in seconds.items():
        rate = READ_SAMPLES * (LENGTH + 1) * DTYPE.itemsize / statistics.median(times) / 1e9
        print(f"  {name:<30}{rate:6.2f} GB/s  ours is {np.median(np.array(times) / ours):.0%} of it")


if __name__ == "__main__":
    main()
