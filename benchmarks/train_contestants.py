"""One contestant of benchmarks/train.py, which starts it: builds a model, then takes a training step for each line it is sent.

Each line on stdin asks for a step; the answer is a line of JSON with its seconds on the clock and of the processor. At the end of
stdin it answers with its peak memory. Runs in any environment that has torch: each builder imports what it needs.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its tokenize.py must not stand in for the standard library's

import argparse
import json
import os
import resource
import socket
import subprocess
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

NUM_LAYERS, HIDDEN, HEADS, KV_HEADS, FFN, VOCAB = 8, 512, 8, 4, 1408, 32000
HEAD_DIM = HIDDEN // HEADS
RATE, DECAY, BETAS, CLIP = 3e-4, 0.1, (0.9, 0.95), 1.0
LAYER_SHAPES = [(HIDDEN + 2 * KV_HEADS * HEAD_DIM, HIDDEN), (HIDDEN, HIDDEN), (2 * FFN, HIDDEN), (HIDDEN, FFN)]

Step = Callable[[torch.Tensor], None]
"""Trains on token ids [1, seq + 1]."""


def main() -> None:
    """Build the contestant, warm up, and step when asked."""
    args = read_arguments(*BUILDERS)
    os.environ.update(OMP_NUM_THREADS=str(args.threads), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.rank)
    args.ranks = 2 if args.name.endswith("dp2") else 1
    if args.rank == 0:
        listen(args)
    other = start_second_rank(args) if args.rank < args.ranks - 1 else None
    step = BUILDERS[args.name](args)
    tokens = torch.randint(VOCAB, (64, 1, args.seq + 1))
    for n in range(args.warm_up):
        step(tokens[n])
    answer_steps(step, tokens, args)
    if args.rank == 0:
        print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)
    if other:
        other.wait()
    os._exit(0)  # groups need no farewell here


def read_arguments(*names: str) -> argparse.Namespace:
    """What benchmarks/train.py says; `names` are the contestants of this file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=names)
    parser.add_argument("--seq", type=int, required=True)
    parser.add_argument("--precision", choices=("fp32", "autocast", "bf16"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--torchtitan", type=Path)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--port", type=int)
    parser.set_defaults(listen_fd=None)
    return parser.parse_args()


def answer_steps(step: Step, tokens: torch.Tensor, args: argparse.Namespace) -> None:
    """A step for each line until stdin ends; a second rank follows the first."""
    if args.rank == 0:
        print(json.dumps({"ready": True}), flush=True)
    number = 0
    while True:
        asked = torch.tensor([bool(sys.stdin.readline()) if args.rank == 0 else False], dtype=torch.uint8)
        if args.ranks > 1:
            dist.broadcast(asked, 0)
        if not asked.item():
            return
        number += 1
        began, began_cpu = time.perf_counter(), time.process_time()
        step(tokens[number % len(tokens)])
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        if args.rank == 0:
            print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}), flush=True)


def listen(args: argparse.Namespace) -> None:
    """The socket at which the ranks meet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        args.port, args.listen_fd = listener.getsockname()[1], os.dup(listener.fileno())


def start_second_rank(args: argparse.Namespace) -> "subprocess.Popen[bytes]":
    """Start this program again as rank 1."""
    command = [sys.executable, __file__, args.name, "--seq", args.seq, "--precision", args.precision, "--threads", args.threads]
    second = [*map(str, command), "--warm-up", str(args.warm_up), "--rank", "1", "--port", str(args.port)]
    return subprocess.Popen(second, stdin=subprocess.DEVNULL)


def build_poro(args: argparse.Namespace) -> Step:
    """What `poro train` does for each step."""
    from megatron_poro.engine.launch import World
    from megatron_poro.engine.platform import start_platform

    world = World(args.rank, args.ranks, args.rank, port=args.port, listen_fd=args.listen_fd, is_local=True)
    platform = start_platform(world.local_rank)
    from megatron_poro.engine.groups import start_groups
    from megatron_poro.engine.model import build_model
    from megatron_poro.engine.optimizer import build_optimizer, set_learning_rate
    from megatron_poro.engine.step import Microbatch, train_step
    from megatron_poro.topology import Layout

    config = poro_config(args.seq, "fp32" if args.precision == "fp32" else "bf16", Path())
    layout = Layout(1, 1, world.size, 1)
    start_groups(world, layout, platform)
    chunks = build_model(config, layout, platform)
    optimizer = build_optimizer(config, chunks)

    def step(tokens: torch.Tensor) -> None:
        set_learning_rate(optimizer, RATE, DECAY)
        train_step(chunks, optimizer, [Microbatch(tokens.numpy(), 1)])

    return step


def poro_config(sequence: int, precision: str, folder: Path, *, num_steps: int = 1000) -> Any:
    """The run file of this model, with its data in `folder`."""
    from megatron_poro.config import (
        CheckpointConfig,
        DataConfig,
        ModelConfig,
        OptimizerConfig,
        RunConfig,
        SourceConfig,
        TrainingConfig,
    )

    return RunConfig(
        run_directory=str(folder / "run"),
        model=ModelConfig(
            num_layers=NUM_LAYERS,
            hidden_size=HIDDEN,
            ffn_hidden_size=FFN,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            vocab_size=VOCAB,
        ),
        data=DataConfig(sequence_length=sequence, sources=(SourceConfig(name="random", path=str(folder / "random"), weight=1.0),)),
        training=TrainingConfig(steps=num_steps, global_batch_size=1, precision=precision),
        optimizer=OptimizerConfig(learning_rate=RATE, weight_decay=DECAY, clip_gradient_norm=CLIP),
        checkpoint=CheckpointConfig(initial="random"),
    )


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions by halves: x [batch, heads, seq, dim]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class PlainLayer(nn.Module):
    """A Llama layer as a short torch program has it, QKV and gate-up fused."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(HIDDEN), nn.RMSNorm(HIDDEN)
        self.qkv, self.out, self.gate_up, self.down = (nn.Linear(i, o, bias=False) for o, i in LAYER_SHAPES)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x [batch, seq, hidden] -> the same."""
        batch, length, _ = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, length, -1, HEAD_DIM).transpose(1, 2)  # [batch, heads, seq, dim]
        q, k, v = heads.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, HIDDEN))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


class PlainLlama(nn.Module):
    """The model in plain torch; forward gives the mean loss of token ids [batch, seq + 1]."""

    def __init__(self, sequence: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(PlainLayer() for _ in range(NUM_LAYERS))
        self.norm, self.head = nn.RMSNorm(HIDDEN), nn.Linear(HIDDEN, VOCAB, bias=False)
        frequencies = 500000.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        angles = torch.outer(torch.arange(sequence).float(), frequencies)  # [seq, dim / 2]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids [batch, seq + 1] -> mean loss."""
        x = self.embed(tokens[:, :-1])
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = self.head(self.norm(x)).float()
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def torch_loop(model: nn.Module, loss_of: Callable[[nn.Module, torch.Tensor], torch.Tensor], precision: str) -> Step:
    """The usual loop: fused AdamW, gradients dropped before each step, clipping."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY, fused=True)

    def step(tokens: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            loss = loss_of(model, tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        loss.item()

    return step


def in_precision(model: nn.Module, precision: str) -> nn.Module:
    """The model with bf16 parameters where the mode asks for them."""
    return model.to(torch.bfloat16) if precision == "bf16" else model


def build_torch(args: argparse.Namespace) -> Step:
    """The plain torch program."""
    return torch_loop(in_precision(PlainLlama(args.seq), args.precision), lambda model, t: model(t), args.precision)


def build_ddp(args: argparse.Namespace) -> Step:
    """The plain torch program on two processes, in torch's DistributedDataParallel."""
    store = dist.TCPStore("127.0.0.1", args.port, 2, args.rank == 0, master_listen_fd=args.listen_fd, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=args.rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(in_precision(PlainLlama(args.seq), args.precision), gradient_as_bucket_view=True)
    return torch_loop(model, lambda model, t: model(t), args.precision)


def build_transformers(args: argparse.Namespace) -> Step:
    """Hugging Face's Llama, loss of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=args.seq,
        attn_implementation="sdpa",
        use_cache=False,
    )
    model = in_precision(LlamaForCausalLM(config), args.precision)
    return torch_loop(model, lambda model, t: model(input_ids=t[:, :-1], labels=t[:, :-1]).loss, args.precision)


def build_litgpt(args: argparse.Namespace) -> Step:
    """litgpt's GPT and its chunked loss, as its pretraining has them."""
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=args.seq,
        n_layer=NUM_LAYERS,
        n_embd=HIDDEN,
        n_head=HEADS,
        n_query_groups=KV_HEADS,
        vocab_size=VOCAB,
        padded_vocab_size=VOCAB,
        intermediate_size=FFN,
        bias=False,
        parallel_residual=False,
        rotary_percentage=1.0,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        rope_base=500000,
    )
    model = in_precision(GPT(config), args.precision)
    return torch_loop(model, lambda model, t: chunked_cross_entropy(model(t[:, :-1]), t[:, 1:]), args.precision)


def build_torchtitan(args: argparse.Namespace) -> Step:
    """torchtitan's Llama 3, with its own SDPA module in place of the attentions that need a GPU."""
    sys.path.insert(0, str(args.torchtitan))
    kernels: Any = types.ModuleType("torchtitan.distributed.minimal_async_ep.kernels")  # of triton, for experts, which are not here
    kernels.__getattr__ = lambda name: None
    sys.modules[kernels.__name__] = kernels
    from torchtitan.models import llama3
    from torchtitan.models.common import attention, rope
    from torchtitan.models.llama3 import Embedding, Linear, RMSNorm

    class Attention(attention.ScaledDotProductAttention):
        """Its SDPA, causal, by whichever kernel torch picks; the kernels it names are a GPU's."""

        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **settings: Any) -> torch.Tensor:
            q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, heads, tokens, dim]
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return y[0].transpose(0, 1)

    llama3.get_attention_config = lambda backend: Attention.Config()
    attention.ScaledDotProductAttention.Config._owner = Attention
    layers = llama3._build_llama3_layers(
        n_layers=NUM_LAYERS,
        dim=HIDDEN,
        n_heads=HEADS,
        n_kv_heads=KV_HEADS,
        hidden_dim=FFN,
        rope=rope.ComplexRoPE.Config(dim=HEAD_DIM, max_context_length=args.seq, theta=500000, scaling="none"),
        attn_backend="sdpa",
    )
    config = llama3.Llama3Model.Config(
        dim=HIDDEN,
        vocab_size=VOCAB,
        tok_embeddings=Embedding.Config(num_embeddings=VOCAB, embedding_dim=HIDDEN, param_init=llama3._EMBEDDING_INIT),
        norm=RMSNorm.Config(normalized_shape=HIDDEN, param_init=llama3._NORM_INIT),
        lm_head=Linear.Config(in_features=HIDDEN, out_features=VOCAB, param_init=llama3._output_linear_init(HIDDEN)),
        layers=layers,
    )
    model = config.build()
    model.init_states()

    def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        logits = model(tokens[0, :-1]).float()  # [tokens, vocab]
        return functional.cross_entropy(logits, tokens[0, 1:])

    return torch_loop(in_precision(model, args.precision), loss_of, args.precision)


def build_matmuls(args: argparse.Namespace) -> Step:
    """The step's matrix products alone, forward and both backward, into memory that is there already."""
    dtype = torch.float32 if args.precision == "fp32" else torch.bfloat16
    parts = [(shape, NUM_LAYERS) for shape in LAYER_SHAPES] + [((VOCAB, HIDDEN), 1)]
    jobs = []
    for (rows, columns), times in parts:
        x, w, g = (torch.randn(a, b).to(dtype) for a, b in ((args.seq, columns), (rows, columns), (args.seq, rows)))
        jobs += times * [(x, w.t(), torch.empty_like(g)), (g, w, torch.empty_like(x)), (g.t(), x, torch.empty_like(w))]

    def step(tokens: torch.Tensor) -> None:
        for a, b, out in jobs:
            torch.matmul(a, b, out=out)

    return step


BUILDERS: dict[str, Callable[[argparse.Namespace], Step]] = {
    "poro": build_poro,
    "torch": build_torch,
    "transformers": build_transformers,
    "litgpt": build_litgpt,
    "torchtitan": build_torchtitan,
    "matmuls": build_matmuls,
    "poro-dp2": build_poro,
    "ddp-dp2": build_ddp,
}

if __name__ == "__main__":
    main()
