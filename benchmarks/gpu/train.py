"""Training speed on one accelerator: our engine beside Hugging Face transformers and beside bare matrix products.

    python benchmarks/gpu/train.py [--shapes 1b,8b-layers,70b-layers] [--sequence 8192] [--steps 10] [--rounds 3] [--report FILE]
    python benchmarks/gpu/train.py --shapes tiny --sequence 64 --steps 2 --rounds 1      # on a CPU: does it run at all

Needs torch, megatron-core and, for the peer, transformers; neither Transformer Engine nor apex. Contestants take turns, each in a
process of its own: `poro` (bf16 weights, fp32 gradients, master weights and moments; what `poro train` runs), `transformers`
(LlamaForCausalLM, SDPA, bf16 weights, gradients and moments, torch's fused AdamW: less work a step than ours), and `ceiling`: every
matrix product of the shape, forward and backward, as bare torch.matmul in bf16.

FLOP of a step = 6 x matrix parameters x tokens + causal attention (6 x layers x tokens x sequence x heads x head size). Utilisation
is that against the ceiling, not against a data sheet. A figure is the median of the rounds.
"""

import argparse
import json
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

SHAPE_KEYS = ("num_layers", "hidden_size", "ffn_hidden_size", "heads", "kv_heads", "vocab_size", "tied")
SHAPES: dict[str, dict[str, Any]] = {
    name: dict(zip(SHAPE_KEYS, values, strict=True))
    for name, values in {
        "tiny": (2, 64, 176, 8, 4, 1000, False),
        "1b": (16, 2048, 8192, 32, 8, 128_256, True),
        "8b-layers": (4, 4096, 14_336, 32, 8, 128_256, False),
        "70b-layers": (2, 8192, 28_672, 64, 8, 128_256, True),
    }.items()
}
CONTESTANTS = ("ceiling", "poro", "transformers")
WARM_UP_STEPS = 3
Shape = dict[str, Any]
Result = dict[str, float]


def main() -> None:
    """Let the contestants take turns, and print what they reach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="1b,8b-layers,70b-layers", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--sequence", type=int, default=8192, help="tokens a sample; the batch is 1 (default: 8192)")
    parser.add_argument("--steps", type=int, default=10, help="steps timed in each turn (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant (default: 3)")
    parser.add_argument("--recompute", default="none", choices=("none", "selective", "full"), help="of ours (default: none)")
    parser.add_argument("--report", type=Path, help="write all figures as JSON")
    parser.add_argument("--turn", choices=CONTESTANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turn:
        print(json.dumps(take_turn(args)))
        return
    report = {"device": device_name(), "torch": torch.__version__, "sequence": args.sequence, "shapes": {}}
    for name in args.shapes.split(","):
        report["shapes"][name] = compare(name, args)
    if args.report:
        args.report.write_text(json.dumps(report, indent=2))
    print(json.dumps(report))


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one shape."""
    rounds: dict[str, list[Result]] = {contestant: [] for contestant in CONTESTANTS}
    for _ in range(args.rounds):
        for contestant in CONTESTANTS:
            words = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--turn", contestant, "--shapes", name]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode == 0:
                rounds[contestant].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        contestant: {key: statistics.median(result[key] for result in results) for key in results[0]}
        for contestant, results in rounds.items()
        if results
    }
    flop = flop_per_step(SHAPES[name], args.sequence)
    ceiling = medians.get("ceiling", {}).get("tflops")
    print(f"{name}: {parameters(SHAPES[name]) / 1e9:.3f}B parameters, sequence {args.sequence}, {flop / 1e12:.1f} TFLOP a step")
    if ceiling:
        print(f"  {'bare products':14} {ceiling:10.2f} TFLOP/s")
    for contestant in CONTESTANTS[1:]:
        if contestant not in medians:
            print(f"  {contestant:14} failed")
            continue
        found = medians[contestant]
        found["tflops"] = flop / found["seconds"] / 1e12
        found["utilisation"] = found["tflops"] / ceiling if ceiling else float("nan")
        print(
            f"  {contestant:14} {args.sequence / found['seconds']:10,.0f} tokens/s  {found['tflops']:8.2f} TFLOP/s  "
            f"{found['utilisation']:6.1%} of the ceiling  {found['peak_gb']:6.1f} GB"
        )
    if "poro" in medians and "transformers" in medians:
        medians["poro / transformers"] = {"speed": medians["transformers"]["seconds"] / medians["poro"]["seconds"]}
        print(f"  poro / transformers, speed: {medians['poro / transformers']['speed']:.2f}")
    return {"rounds": rounds, "medians": medians, "flop_per_step": flop}


def take_turn(args: argparse.Namespace) -> Result:
    """One contestant on one shape."""
    shape = SHAPES[args.shapes]
    contestant: Callable[[Shape, argparse.Namespace], Result] = globals()[f"time_{args.turn}"]
    return contestant(shape, args)


def time_ceiling(shape: Shape, args: argparse.Namespace) -> Result:
    """TFLOP/s of all matrix products of a step, each weighted with its time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seconds = flop = 0.0
    for rows, columns, times in matrices(shape):
        x = torch.randn(args.sequence, columns, device=device, dtype=torch.bfloat16)
        weight = torch.randn(rows, columns, device=device, dtype=torch.bfloat16)
        gradient = torch.randn(args.sequence, rows, device=device, dtype=torch.bfloat16)

        def products(x: torch.Tensor = x, weight: torch.Tensor = weight, gradient: torch.Tensor = gradient) -> None:
            x @ weight.t()
            gradient @ weight
            gradient.t() @ x

        for _ in range(WARM_UP_STEPS):
            products()
        repeats = max(args.steps, 3)
        seconds += times * timed(products, repeats) / repeats
        flop += times * 6.0 * rows * columns * args.sequence
    return {"tflops": flop / seconds / 1e12}


def time_poro(shape: Shape, args: argparse.Namespace) -> Result:
    """Our engine on one process."""
    from megatron_poro.config import CheckpointConfig, DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
    from megatron_poro.engine.launch import World
    from megatron_poro.engine.platform import start_platform
    from megatron_poro.topology import Layout

    model = ModelConfig(
        **{key: shape[key] for key in ("num_layers", "hidden_size", "ffn_hidden_size", "vocab_size")},
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        tied_embeddings=shape["tied"],
    )
    config = RunConfig(
        run_directory="",
        model=model,
        data=DataConfig(sequence_length=args.sequence, sources=()),
        training=TrainingConfig(steps=1, global_batch_size=1, recompute=args.recompute),
        optimizer=OptimizerConfig(learning_rate=1e-5),
        checkpoint=CheckpointConfig(initial="random"),
    )
    platform = start_platform(0)
    from megatron_poro.engine.groups import start_groups
    from megatron_poro.engine.model import build_model
    from megatron_poro.engine.optimizer import build_optimizer
    from megatron_poro.engine.step import Microbatch, train_step

    listener = socket.create_server(("127.0.0.1", 0))
    world = World(0, 1, 0, port=listener.getsockname()[1], listen_fd=listener.fileno(), is_local=True)
    start_groups(world, Layout(), platform)
    chunks = build_model(config, Layout(), platform)
    optimizer = build_optimizer(config, chunks)
    rows = np.random.default_rng(0).integers(0, shape["vocab_size"], (1, args.sequence + 1), np.int32)
    return time_steps(lambda: train_step(chunks, optimizer, [Microbatch(rows, 1)]), args)


def time_transformers(shape: Shape, args: argparse.Namespace) -> Result:
    """transformers' Llama with torch's fused AdamW."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=shape["num_layers"],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["ffn_hidden_size"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        vocab_size=shape["vocab_size"],
        tie_word_embeddings=shape["tied"],
        max_position_embeddings=args.sequence,
        attn_implementation="sdpa",
        use_cache=False,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.randint(0, shape["vocab_size"], (1, args.sequence), device=device)

    def step() -> None:
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return time_steps(step, args)


def time_steps(step: Callable[[], Any], args: argparse.Namespace) -> Result:
    """Seconds of a step, and the most memory that was in use."""
    for _ in range(WARM_UP_STEPS):
        step()
    seconds = timed(step, args.steps) / args.steps
    if torch.cuda.is_available():
        return {"seconds": seconds, "peak_gb": torch.cuda.max_memory_allocated() / 1e9}
    return {"seconds": seconds, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def timed(work: Callable[[], Any], repeats: int) -> float:
    """Seconds until all repeats are done on the device."""
    wait()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    wait()
    return time.perf_counter() - began


def wait() -> None:
    """Return when the device is idle."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matrices(shape: Shape) -> list[tuple[int, int, int]]:
    """Rows, columns and number of each weight matrix that a token is multiplied with."""
    hidden, ffn, layers = shape["hidden_size"], shape["ffn_hidden_size"], shape["num_layers"]
    qkv = hidden + 2 * shape["kv_heads"] * hidden // shape["heads"]
    return [
        (qkv, hidden, layers),
        (hidden, hidden, layers),
        (2 * ffn, hidden, layers),
        (hidden, ffn, layers),
        (shape["vocab_size"], hidden, 1),
    ]


def flop_per_step(shape: Shape, sequence: int) -> float:
    """FLOP of forward and backward over one sequence; see the head of this file."""
    products = 6.0 * sequence * sum(rows * columns * times for rows, columns, times in matrices(shape))
    return products + 6.0 * shape["num_layers"] * sequence * sequence * shape["hidden_size"]


def parameters(shape: Shape) -> int:
    """All weights, without norms."""
    embedding = 0 if shape["tied"] else shape["vocab_size"] * shape["hidden_size"]
    return embedding + sum(rows * columns * times for rows, columns, times in matrices(shape))


def device_name() -> str:
    """What is measured."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


if __name__ == "__main__":
    main()
