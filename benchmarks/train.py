"""Training speed beside transformers, litgpt, torchtitan and a plain torch loop, and beside the bare matrix products.

    python benchmarks/train.py peers --seq 512 --mode fp32 [--rounds 9] [--litgpt-python PYTHON] [--torchtitan DIR]
    python benchmarks/train.py dp2 --seq 512 --mode fp32      (two processes beside torch's DistributedDataParallel)
    python benchmarks/train.py loop --seq 512 --mode fp32     (our loop beside a bare one on megatron-core, in one process)

The model is a Llama of 56 million parameters: 8 layers of width 512, 8 heads on 4, feed-forward 1,408, vocabulary 32,000, untied.
Batch 1, random tokens, AdamW, clipping at 1.0. Mode `fp32`; `autocast` and `bf16` tell how the peers compute in bf16, by
torch.autocast on fp32 weights or with bf16 weights, gradients and moments. Ours has bf16 weights with fp32 gradients, master
weights and moments in both.

All contestants are started first, each in a process of its own, and then take one step after the other, each round in another
order. Ratios are taken within a round, so that what else the machine does falls on both. litgpt and torchtitan run in the
environment of --litgpt-python, which for torchtitan needs spmd-types and tyro too; either is left out without its argument. The
last line is JSON. Nothing here imports torch: a process's peak memory begins with that of the one that started it.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONTESTANTS = {
    "peers": ("poro", "torch", "transformers", "litgpt", "torchtitan", "matmuls"),
    "dp2": ("poro-dp2", "ddp-dp2"),
}
LAYERS, HIDDEN, FFN, VOCAB, KV = 8, 512, 1408, 32000, 256
MATMUL_PARAMETERS = LAYERS * HIDDEN * (2 * HIDDEN + 2 * KV + 3 * FFN) + VOCAB * HIDDEN


def main() -> None:
    """Run the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("peers", "dp2", "loop"))
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--mode", choices=("fp32", "autocast", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="of a contestant; divided among its processes")
    parser.add_argument("--only", nargs="*", help="names of the contestants, by default all")
    parser.add_argument("--litgpt-python", type=Path)
    parser.add_argument("--torchtitan", type=Path)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    report = measure_loop(args) if args.part == "loop" else measure_contestants(args)
    print(f"load before: {load:.1f}")
    print(json.dumps({"part": args.part, "seq": args.seq, "mode": args.mode, "load": load, **report}))


def measure_contestants(args: argparse.Namespace) -> dict[str, Any]:
    """Start all, step in turn, and print the table."""
    running = {}
    for name in args.only or CONTESTANTS[args.part]:
        if not is_there(name, args):
            continue
        process = start(name, args)
        if receive(process):  # one after the other: each warms up
            running[name] = process
        else:
            print(f"{name} does not start", file=sys.stderr)
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    order = random.Random(0)
    for _ in range(args.rounds):
        for name in order.sample(list(running), len(running)):
            running[name].stdin.write("\n")
            running[name].stdin.flush()
            steps[name].append(receive(running[name]))
    peaks = {name: finish(process) for name, process in running.items()}
    tokens = args.seq * (2 if args.part == "dp2" else 1)
    return {"contestants": show(steps, peaks, tokens), **show_share(steps, args.seq)}


def is_there(name: str, args: argparse.Namespace) -> bool:
    """Whether the arguments say where the contestant is."""
    needed = {"litgpt": args.litgpt_python, "torchtitan": args.litgpt_python and args.torchtitan}
    return bool(needed.get(name, True))


def start(name: str, args: argparse.Namespace) -> "subprocess.Popen[str]":
    """The contestant in a process of its own."""
    python = args.litgpt_python if name in ("litgpt", "torchtitan") else sys.executable
    threads = max(1, args.threads // (2 if args.part == "dp2" else 1))
    words = ["--seq", args.seq, "--precision", args.mode, "--threads", threads]
    program = "train_loop.py" if name == "loop" else "train_contestants.py"
    command = [python, "-W", "ignore", HERE / program, name, *words]
    if args.torchtitan:
        command += ["--torchtitan", args.torchtitan]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": str(threads)}
    pipe = subprocess.PIPE
    return subprocess.Popen(list(map(str, command)), stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment)


def receive(process: Any) -> Any:
    """The next answer; libraries may print between."""
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    return None


def finish(process: Any) -> float:
    """End the contestant; its peak memory in MB."""
    process.stdin.close()
    peak = receive(process)["peak_mb"]
    process.wait()
    return float(peak)


def show(steps: dict[str, list[dict[str, float]]], peaks: dict[str, float], tokens: int) -> dict[str, Any]:
    """The table: rates by the clock, the processor's seconds, and ours by the contestant's within each round."""
    first = next(iter(steps))
    rows = {}
    print(f"{'':14}{'tokens/s':>26}{'best':>8}{'cpu s/step':>12}{'peak MB':>9}   {first} / it, by round")
    for name, taken in steps.items():
        rates = [tokens / step["seconds"] for step in taken]
        ratios = [its["seconds"] / own["seconds"] for own, its in zip(steps[first], taken, strict=True)]
        cpu = statistics.median(step["cpu_seconds"] for step in taken)
        rows[name] = {"rate": spread(rates), "best": max(rates), "cpu": cpu, "peak_mb": peaks[name], "ratio": spread(ratios)}
        shown = f"{statistics.median(rates):,.0f} [{min(rates):,.0f}-{max(rates):,.0f}]"
        print(f"{name:14}{shown:>26}{max(rates):8,.0f}{cpu:12.3f}{peaks[name]:9,.0f}   {as_text(spread(ratios))}")
    return rows


def show_share(steps: dict[str, list[dict[str, float]]], sequence: int) -> dict[str, Any]:
    """What each contestant's step reaches of the rate of the bare products, whose attention is left out."""
    if "matmuls" not in steps:
        return {}
    products = 6 * MATMUL_PARAMETERS * sequence
    step = products + 6 * LAYERS * HIDDEN * sequence**2  # causal: half of the scores, forward once and backward twice
    bare = [products / each["seconds"] for each in steps["matmuls"]]
    print(f"bare matrix products: {statistics.median(bare) / 1e9:,.0f} GFLOP/s; a step is {step / 1e9:.0f} GFLOP")
    shares = {}
    for name, taken in steps.items():
        if name != "matmuls":
            shares[name] = spread([step / each["seconds"] / rate for each, rate in zip(taken, bare, strict=True)])
            print(f"  {name}: {as_text(shares[name])} of that")
    return {"gflops": spread(bare), "share": shares}


def measure_loop(args: argparse.Namespace) -> dict[str, Any]:
    """Ours and the bare loop in turn, in one process."""
    process = start("loop", args)
    receive(process)
    taken = []
    for _ in range(args.rounds):
        process.stdin.write("\n")
        process.stdin.flush()
        taken.append(receive(process))
    finish(process)
    report = {}
    for clock in ("seconds", "cpu_seconds"):
        ratios = [each[clock] / each["bare_" + clock] for each in taken]
        total = sum(each[clock] for each in taken) / sum(each["bare_" + clock] for each in taken)
        print(f"loop / bare in {clock}, by step: {as_text(spread(ratios), digits=3)}, in all {total:.3f}")
        report[clock] = {"ratio": spread(ratios), "total": total}
    return report


def spread(values: Sequence[float]) -> list[float]:
    """Median, least, largest."""
    return [round(value, 4) for value in (statistics.median(values), min(values), max(values))]


def as_text(values: Sequence[float], *, digits: int = 2) -> str:
    """Median [least-largest]."""
    return "{:.{d}f} [{:.{d}f}-{:.{d}f}]".format(*values, d=digits)


if __name__ == "__main__":
    main()
