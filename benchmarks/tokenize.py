"""How fast text becomes tokens: `poro data tokenize` beside the raw encoder and Megatron-LM's tools/preprocess_data.py.

    python benchmarks/tokenize.py --data ../shared/data --megatron-lm CHECKOUT

Over 40 MB of Finnish, English, code and math, no document twice, with Llama 3's tokenizer. All contestants run in turn,
round after round. Whole: the whole command, from a cold process to files on the disk. Net: without the time that the same
command takes for one document. Raw: the call of gigatoken's encode_files alone, all cores, nothing written. Megatron-LM is
unmodified; the wrapper below stands in for modules of it that cannot be imported without a GPU and that it does not use.
"""

import sys

sys.path.pop(0)  # this folder: its tokenize.py must not stand in for the standard library's


import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from data_indexing.tokenizer import load_tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
PIECE_CHARACTERS = 8_000
RAW = "raw encode_files"
STAND_INS = """
import importlib.abc, importlib.machinery, sys, types, typing

NAMES = ("megatron.core.transformer.moe.ops.paged_stash", "megatron.core.ssm.ops")  # written in triton


class Anything(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments: None


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.startswith(NAMES) else None

    def create_module(self, spec):
        return Anything(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Finder())
if not hasattr(typing, "override"):  # Python 3.11
    typing.override = lambda function: function
"""
RAW_PROGRAM = """
import sys, time
import numpy as np
from gigatoken import JsonlFileSource, Tokenizer

tokenizer = Tokenizer(sys.argv[1])
tokenizer.encode_batch(["imports what it needs"])
start = time.perf_counter()
ids = tokenizer.encode_files(JsonlFileSource([sys.argv[2]]))
print(time.perf_counter() - start)
np.save(sys.argv[3], ids.layout.content.data)
"""


@dataclass
class Contestant:
    """A command of an input and an output, and what was measured of it."""

    name: str
    command: Callable[[Path, Path], list[str]]
    suffix: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    whole: list[float] = field(default_factory=list)
    start_up: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def net(self) -> list[float]:
        """Seconds of each round without the start-up, that of the median."""
        start_up = statistics.median(self.start_up) if self.start_up else 0.0
        return [seconds - start_up for seconds in self.whole]


def main() -> None:
    """Run it and print the tables."""
    args = _arguments()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder)
        load_tokenizer(args.data / "tokenizers" / "llama3").save_hf(work / "llama3")
        num_bytes = write_corpus(args.data, work)
        contestants = list(_contestants(work, args.megatron_lm))
        for contestant in contestants:
            contestant.peak_bytes = _peak_memory(contestant, work)
        for _ in range(args.rounds):
            for contestant in contestants:
                _measure(contestant, work)
        _print_table(contestants, num_bytes)
        _print_equality(contestants, work)


def write_corpus(data: Path, work: Path) -> int:
    """corpus.jsonl, shuffled, and one.jsonl with its first document; returns the bytes of text."""
    texts = [text for text in _texts(data) if text.strip()]
    random.Random(0).shuffle(texts)
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    (work / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
    (work / "one.jsonl").write_text(lines[0], encoding="utf-8")
    return sum(len(text.encode()) for text in texts)


def _texts(data: Path) -> Iterator[str]:
    for pattern in ("text_fi/*.jsonl", "text_en/*.jsonl", "code/*.jsonl"):
        for path in sorted(data.glob(pattern)):
            yield from (record["text"] for record in _records(path))
    for path in sorted(data.glob("text_*/*.txt")):
        text = path.read_text(encoding="utf-8-sig")
        yield from (text[start : start + PIECE_CHARACTERS] for start in range(0, len(text), PIECE_CHARACTERS))
    for path in sorted(data.glob("parallel_en_fi/*.jsonl")):
        yield from (record[language] for record in _records(path) for language in ("en", "fi"))
    for path in sorted(data.glob("math/*/*.jsonl")):
        yield from (f"{record['question']}\n{record.get('answer') or record['rationale']}" for record in _records(path))


def _records(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _contestants(work: Path, checkout: Path | None) -> Iterator[Contestant]:
    tokenizer = str(work / "llama3")
    yield Contestant(RAW, lambda text, out: [sys.executable, "-c", RAW_PROGRAM, tokenizer, str(text), f"{out}.npy"])
    for workers in ("1", "2"):
        options = ["--tokenizer", tokenizer, "--preset", "poro2", "--workers", workers, "--overwrite"]

        def ours(text: Path, out: Path, options: list[str] = options) -> list[str]:
            return [sys.executable, "-m", "megatron_poro", "data", "tokenize", str(text), "--output", str(out), *options]

        yield Contestant(f"poro, {workers} workers", ours)
    if checkout is None:
        print("no --megatron-lm CHECKOUT: without Megatron-LM", file=sys.stderr)
        return
    (work / "stand-ins").mkdir()
    (work / "stand-ins" / "sitecustomize.py").write_text(STAND_INS)
    environment = {"PYTHONPATH": os.pathsep.join([str(work / "stand-ins"), str(checkout)])}
    for workers in ("1", "2"):
        flags = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer, "--append-eod", "--workers", workers]

        def theirs(text: Path, out: Path, flags: list[str] = flags) -> list[str]:
            program = str(checkout / "tools" / "preprocess_data.py")
            return [sys.executable, program, "--input", str(text), "--output-prefix", str(out), "--log-interval", "100000", *flags]

        yield Contestant(f"Megatron-LM, {workers} workers", theirs, "_text_document", environment)


def _measure(contestant: Contestant, work: Path) -> None:
    if contestant.name != RAW:
        contestant.start_up.append(_seconds(contestant, work, "one"))
    contestant.whole.append(_seconds(contestant, work, "corpus"))


def _seconds(contestant: Contestant, work: Path, text: str) -> float:
    os.sync()
    _wait_for_quiet()
    start = time.perf_counter()
    process = _start(contestant, work, text)
    shown, errors = process.communicate()
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{contestant.name}: exit code {process.returncode}\n{errors}")
    return float(shown) if contestant.name == RAW else seconds


def _wait_for_quiet() -> None:
    """Others on the machine would be measured too; after two minutes they are."""
    deadline = time.monotonic() + 120
    while psutil.cpu_percent(0.5) > 12 and time.monotonic() < deadline:
        time.sleep(0.5)


def _start(contestant: Contestant, work: Path, text: str) -> "subprocess.Popen[str]":
    command = contestant.command(work / f"{text}.jsonl", work / f"{contestant.name.replace(' ', '-')}-{text}")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **contestant.environment}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _peak_memory(contestant: Contestant, work: Path) -> int:
    """Largest sum of the resident memory of all processes, in a run of its own."""
    process = _start(contestant, work, "corpus")
    drain = threading.Thread(target=process.communicate)
    drain.start()
    peak = 0
    while process.poll() is None:
        peak = max(peak, _tree_bytes(process.pid))
        time.sleep(0.02)
    drain.join()
    return peak


def _tree_bytes(pid: int) -> int:
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _print_table(contestants: list[Contestant], num_bytes: int) -> None:
    print(f"{num_bytes / 1e6:.2f} MB of text, {len(contestants[0].whole)} rounds: median [min-max]\n")
    print("| | whole s | start-up s | whole MB/s | net MB/s | peak RSS of all processes, MB |")
    print("|---|---|---|---|---|---|")
    for each in contestants:
        start_up = f"{statistics.median(each.start_up):.2f}" if each.start_up else ""
        net = [num_bytes / 1e6 / seconds for seconds in each.net]
        whole = f"{num_bytes / 1e6 / statistics.median(each.whole):.1f}" if each.start_up else ""
        print(f"| {each.name} | {_spread(each.whole)} | {start_up} | {whole} | {_spread(net)} | {each.peak_bytes / 1e6:.0f} |")
    by_name = {each.name: each for each in contestants}
    for workers in ("1", "2"):
        ours, theirs = by_name[f"poro, {workers} workers"], by_name.get(f"Megatron-LM, {workers} workers")
        print(f"\n{workers} workers: {_ratio(by_name[RAW].whole, ours.net)} of the raw encoder's rate, net of start-up", end="")
        if theirs:
            print(f"; {_ratio(theirs.whole, ours.whole)} times Megatron-LM whole, {_ratio(theirs.net, ours.net)} net", end="")
    print()


def _ratio(slower: list[float], faster: list[float]) -> str:
    """Of the seconds of the same round."""
    return _spread([a / b for a, b in zip(slower, faster, strict=True)])


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}-{max(values):.2f}]"


def _print_equality(contestants: list[Contestant], work: Path) -> None:
    raw, *others = contestants
    ids = np.load(work / f"{raw.name.replace(' ', '-')}-corpus.npy")
    for each in others:
        tokens = np.fromfile(work / f"{each.name.replace(' ', '-')}-corpus{each.suffix}.bin", np.int32)
        plain = tokens[(tokens != 128_000) & (tokens != 128_001)]
        print(f"{each.name}: {tokens.size} tokens, without BOS and EOD equal to the raw encoder's: {np.array_equal(plain, ids)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tokenisation beside the raw encoder and Megatron-LM.")
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data", help="folder of the real data")
    parser.add_argument("--megatron-lm", type=Path, help="checkout of Megatron-LM (default: without it)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--work", type=Path, help="folder for temporary files (default: the system's)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
