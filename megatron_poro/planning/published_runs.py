"""Rows of published throughput (a CSV) as jobs and machines: which can be predicted, and which half of the sources trains."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, log

from megatron_poro.config import shapes
from megatron_poro.planning.counts import hardware_flops, model_flops
from megatron_poro.planning.job import Job, Method, Shape
from megatron_poro.planning.machine import Machine, machine_of
from megatron_poro.planning.times import step_time
from megatron_poro.slurm.profile import load_profile
from megatron_poro.topology import Layout

Row = Mapping[str, str]

CLUSTERS = {"A100": "generic-a100", "H100": "generic-h100", "H200": "generic-h200", "GH200": "generic-gh200", "MI250X": "lumi"}
OTHER_PROGRAMS = re.compile(
    r"maxtext|torchtitan|llm-foundry|nanotron|picotron|llama-?65b paper|llama 3 paper|palm|fsdp|axonn", re.IGNORECASE
)
"""Programs that are not of Megatron's family: fully sharded, or with kernels and schedules of their own."""
NEMO = re.compile(r"dgxc|nemo|megatron-bridge", re.IGNORECASE)
"""NVIDIA's performance recipes: user buffers that hide tensor communication, and bf16 gradients (seen in their logs' memory)."""
NEEDED = ("n_gpus", "seq", "tp", "pp", "cp", "mbs", "gbs")
KNOWN_SHAPES = {
    "llama-?3.*405b": (126, 16384, 53248, 128, 8, 128256, True),
    "llama-?3.*70b": (80, 8192, 28672, 64, 8, 128256, True),
    "llama-?3.*8b": (32, 4096, 14336, 32, 8, 128256, True),
    "llama-?2.*70b": (80, 8192, 28672, 64, 8, 32000, True),
    "llama-?2.*7b": (32, 4096, 11008, 32, 32, 32000, True),
    "nemotron.*340b": (96, 18432, 73728, 96, 8, 256000, False),
    "nemotron.*15b": (32, 6144, 24576, 48, 8, 256000, False),
    "bloom|gpt-181b|gpt-196b": (70, 14336, 57344, 112, 112, 250880, False),
}
"""Layers, hidden, ffn, heads, key/value heads, vocabulary, SwiGLU, of each model's published config; the row's layers win."""


@dataclass(frozen=True)
class Prediction:
    """A row's tokens per second and device, predicted and measured."""

    row: Row
    device: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Relative: above 0 is too fast."""
        return self.predicted / self.measured - 1


def device_of(row: Row) -> str:
    """The device type, by the names of the known peaks."""
    names = [name for name in CLUSTERS if name in row.get("gpu", "")]
    return max(names, key=len, default="")


def unusable(row: Row) -> str:
    """Why the row cannot be predicted; empty when it can."""
    if not device_of(row):
        return f"{row.get('gpu') or 'device'}: not calibrated"
    if row["precision"] not in ("bf16", "fp16"):
        return f"{row['precision'] or 'precision not given'}: not bf16 or fp16"
    if found := OTHER_PROGRAMS.search(f"{row['source']} {row.get('notes', '')}"):
        return f"{found[0]}: not of Megatron's family"
    if wrong := _find_incomplete(row):
        return f"incomplete layout: {wrong}"
    if not (_number(row, "tokens_s_gpu") or _number(row, "tflops_per_gpu")):
        return "no throughput"
    return "" if shape_of_row(row) else "the model's shape is not known"


def _number(row: Row, column: str) -> float | None:
    """A column's number; None where there is none."""
    try:
        value = float(row.get(column) or 0)
    except ValueError:
        return None
    return value if 0 < value < inf else None


def _find_incomplete(row: Row) -> str:
    """What is missing of a layout, or does not multiply; `dp` follows from the others where it is not given."""
    missing = [column for column in NEEDED if not _number(row, column)]
    if missing:
        return f"no {', '.join(missing)}"
    devices, share = _whole(row, "n_gpus"), _whole(row, "tp") * _whole(row, "pp") * _whole(row, "cp")
    data = _whole(row, "dp") or devices // share
    if share * data != devices:
        return f"tp x pp x cp x dp = {share * data}, but {devices} devices"
    batch = data * _whole(row, "mbs")
    return f"dp x mbs = {batch} does not divide gbs" if _whole(row, "gbs") % batch else ""


def _whole(row: Row, column: str, otherwise: int = 0) -> int:
    return int(_number(row, column) or otherwise)


def shape_of_row(row: Row) -> Shape | None:
    """The model's shape: a known one by its name, else GPT's (ffn 4 h) or Llama's with the ffn that gives its parameters."""
    layers, hidden = _whole(row, "layers"), _whole(row, "hidden")
    if not (layers and hidden):
        return None
    name = row["model"].lower()
    for pattern, known in KNOWN_SHAPES.items():
        if re.search(pattern, name) and known[1] == hidden:
            return _shape(layers, hidden, known[2], heads=known[3], kv_heads=known[4], vocabulary=known[5], gated=known[6])
    heads = max(1, hidden // 128)
    if "llama" in name or "openeurollm" in row["source"].lower():
        vocabulary = int(shapes()["llama3.1-8b"]["vocab_size"])
        kv_heads = 8 if heads % 8 == 0 and hidden >= 4096 else heads
        outside = 2 * vocabulary * hidden + layers * 2 * (hidden * hidden + hidden * kv_heads * 128)
        parameters = _number(row, "params_b")
        ffn = (parameters * 1e9 - outside) / (3 * layers * hidden) if parameters else 3.5 * hidden
        return _shape(layers, hidden, round(ffn), heads=heads, kv_heads=kv_heads, vocabulary=vocabulary, gated=True)
    return _shape(layers, hidden, 4 * hidden, heads=heads, kv_heads=heads, vocabulary=51200, gated=False)


def _shape(layers: int, hidden: int, ffn: int, **rest: int | bool) -> Shape:
    heads = int(rest["heads"])
    return Shape(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_heads=heads,
        num_kv_heads=int(rest["kv_heads"]),
        head_dim=hidden // heads,
        vocab_size=int(rest["vocabulary"]),
        gated=bool(rest["gated"]),
    )


def job_of_row(row: Row) -> Job:
    """The job of a usable row.

    How it was computed, where the columns do not say: recomputing activations on an A100 stands for attention of before flash
    attention; programs of 2021 and 2022 (those, with full recomputation) had neither sequence parallelism nor overlap on the data
    axis; NVIDIA's performance recipes hide tensor communication.
    """
    shape = shape_of_row(row)
    if shape is None:
        raise ValueError(unusable(row))
    recompute = row.get("recompute", "").partition("+")[0].partition(" ")[0]
    is_old = device_of(row) == "A100" and recompute in ("full", "selective")
    nemo = bool(NEMO.search(row["source"]))
    tensor, pipeline, context = (_whole(row, axis) for axis in ("tp", "pp", "cp"))
    data = _whole(row, "dp") or _whole(row, "n_gpus") // (tensor * pipeline * context)
    return Job(
        shape=shape,
        layout=Layout(tensor, pipeline, data, _whole(row, "vpp", 1), context),
        sequence_length=_whole(row, "seq"),
        micro_batch_size=_whole(row, "mbs"),
        global_batch_size=_whole(row, "gbs"),
        method=Method(
            recompute=recompute if recompute in ("full", "selective") else "none",
            sequence_parallel=tensor > 1 and not (is_old and recompute == "full"),
            fused_attention=not is_old,
            gradient_bytes=2 if nemo else 4,
            overlap_tensor=nemo,
            overlap_data=not is_old,
        ),
    )


def measured_tokens(row: Row, job: Job) -> float:
    """Tokens per second and device that the row reports; TFLOP/s are turned by the convention that its notes name."""
    tokens, tflops = _number(row, "tokens_s_gpu"), _number(row, "tflops_per_gpu")
    if tokens or not tflops:
        return tokens or 0.0
    notes = row.get("notes", "").lower()
    flops = model_flops(job.shape, job.sequence_length)
    per_token = flops.causal if "causal" in notes else flops.full
    if "recompute" in notes and "no recompute" not in notes:
        per_token = hardware_flops(job.shape, job.sequence_length, job.method.recompute)
    return tflops * 1e12 / per_token


def machine_of_row(row: Row) -> Machine:
    """The rates of the row's device, in nodes of eight."""
    return machine_of(load_profile(CLUSTERS[device_of(row)]))


def predict(row: Row, machine: Machine) -> Prediction:
    """A usable row's prediction."""
    job = job_of_row(row)
    tokens = job.step_tokens / step_time(job, machine).seconds / job.layout.world_size
    return Prediction(row, device_of(row), tokens, measured_tokens(row, job))


def in_bracket(row: Row) -> tuple[float, float, float] | None:
    """TFLOP/s that a row reports, and the bracket of its device's published rates; None for rows that have none of these.

    Where the layout is complete the bracket has its bubble. It needs no prediction, so any program's rows are looked at; tokens are
    turned into FLOPs with causal attention.
    """
    device = device_of(row)
    hardware = load_profile(CLUSTERS[device]).hardware if device else None
    rate, tokens, shape = _number(row, "tflops_per_gpu"), _number(row, "tokens_s_gpu"), shape_of_row(row)
    if not rate and tokens and shape and _whole(row, "seq"):
        rate = tokens * model_flops(shape, _whole(row, "seq")).causal / 1e12
    if not (hardware and hardware.plateau_tflops and rate):
        return None
    low, high = min(hardware.plateau_tflops), max(hardware.plateau_tflops)
    share = 1.0
    if not _find_incomplete(row):
        job = job_of_row(row)
        share = job.num_microbatches / (job.num_microbatches + (job.layout.pipeline - 1) / job.layout.virtual_stages)
    return rate, low * share, high * share


def with_constants(machine: Machine, fixed_seconds: float, efficiency: float) -> Machine:
    """The machine with other fitted numbers."""
    return replace(machine, fixed_seconds=fixed_seconds, efficiency=efficiency)


def source_key(row: Row) -> str:
    """What a source is: a document, by its address, or by its name where it has none."""
    return row.get("url") or row["source"]


def training_sources(rows: Iterable[Row]) -> set[str]:
    """The half of the sources that constants are fitted on: of each device's, in the order of their SHA-256, every other one."""
    chosen: set[str] = set()
    by_device: dict[str, set[str]] = {}
    for row in rows:
        by_device.setdefault(device_of(row), set()).add(source_key(row))
    for sources in by_device.values():
        ordered = sorted(sources, key=lambda source: hashlib.sha256(source.encode()).hexdigest())
        chosen.update(ordered[::2])
    return chosen


def fit(rows: Sequence[Row], machines: Mapping[str, Machine], fixed: Sequence[float]) -> tuple[float, dict[str, float]]:
    """The fixed cost (of those given) and each device's efficiency with the least squared log error; sources weigh the same."""
    best: tuple[float, float, dict[str, float]] = (inf, 0.0, {})
    for seconds in fixed:
        found = {}
        loss = 0.0
        for device in sorted({device_of(row) for row in rows}):
            chosen = [row for row in rows if device_of(row) == device]
            machine = replace(machines[device], fixed_seconds=seconds)
            losses = {e / 200: _loss(chosen, replace(machine, efficiency=e / 200)) for e in range(50, 191)}
            found[device] = min(losses, key=lambda e: losses[e])
            loss += losses[found[device]]
        if loss < best[0]:
            best = loss, seconds, found
    return best[1], best[2]


def _loss(rows: Sequence[Row], machine: Machine) -> float:
    by_source: dict[str, list[float]] = {}
    for row in rows:
        by_source.setdefault(source_key(row), []).append(log(1 + predict(row, machine).error) ** 2)
    return sum(sum(values) / len(values) for values in by_source.values()) / len(by_source)
