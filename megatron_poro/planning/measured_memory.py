"""Rows of measured memory (a CSV of Megatron-LM's own tests) as jobs: what the columns say, and the tests' own files."""

import re
from collections.abc import Mapping

from megatron_poro.planning.job import Job, Method, Shape
from megatron_poro.planning.memory import stage_memory
from megatron_poro.topology import Layout

Row = Mapping[str, str]

OTHER_FAMILIES = re.compile(r"bert|t5|hybrid|mimo|multimodal|nemotron|mamba|retro|vision|ncf")
NOT_DENSE = {
    "mla": "multi-head latent attention",
    "grpo": "reinforcement learning: an inference engine shares the device",
    "distill": "two models on a device",
    "fp8": "fp8",
    "uneven": "layers of each stage are not in the columns",
    "account_for_embedding": "layers of each stage are not in the columns",
}
"""Words of a test's name, and why such a row cannot be predicted from the columns."""
NEEDED = ("tp", "pp", "cp", "layers", "hidden", "heads", "seq", "mbs", "gbs", "mem_max_gb")
GPT2_VOCABULARY = 50257
LARGE_VOCABULARY = 131072
LLAMA_VOCABULARY = 128256


def unusable(row: Row) -> str:
    """Why the row cannot be predicted; empty when it can."""
    family, _, name = row["test"].rpartition("/")
    if found := OTHER_FAMILIES.match(family):
        return f"{found[0]}: no dense decoder of text"
    if family in ("moe", "mixtral") or row.get("experts", "") not in ("", "0", "1"):
        return "mixture of experts"
    if row.get("fsdp") == "True":
        return "fully sharded"
    missing = [column for column in NEEDED if not row.get(column)]
    if missing:
        return f"no {', '.join(missing)}"
    return next((why for word, why in NOT_DENSE.items() if word in name), "")


def job_of_row(row: Row) -> Job:
    """The job of a usable row.

    Not in the columns, from the tests' model_config.yaml in Megatron-LM: GPT-2's vocabulary padded to 128 x tensor, 131,072 untied
    in the 7B tests; `--attention-backend: unfused` in the tests that do not resume, with local layers always, with a context axis
    never. A node of the tests has 8 GPUs, of GB200 4, and those that do not say `1node` ran on 8.
    """
    number = {key: int(float(row[key])) for key in NEEDED if key != "mem_max_gb"}
    name, hidden, heads = row["test"].rpartition("/")[2], number["hidden"], number["heads"]
    devices = 4 if "1node" in name and "gb200" in row.get("file", "") else 8
    gated = row.get("swiglu") == "True"
    is_llama = "llama" in name.lower()
    large = is_llama or bool(re.search(r"_\d+b_", name))
    vocabulary = LLAMA_VOCABULARY if is_llama else LARGE_VOCABULARY if large else GPT2_VOCABULARY
    chunk_layers = int(float(row.get("vpp_layers") or 0))
    layout = Layout(
        number["tp"],
        number["pp"],
        max(1, devices // (number["tp"] * number["pp"] * number["cp"])),
        number["layers"] // number["pp"] // chunk_layers if chunk_layers else 1,
        number["cp"],
    )
    return Job(
        shape=Shape(
            num_layers=number["layers"],
            hidden_size=hidden,
            ffn_hidden_size=int(float(row.get("ffn") or 0)) or (int(hidden * 4 * 2 / 3) // 64 * 64 if gated else 4 * hidden),
            num_heads=heads,
            num_kv_heads=int(float(row.get("kv") or heads)) if large else heads,
            head_dim=hidden // heads,
            vocab_size=_padded(vocabulary, 128 * number["tp"]),
            gated=gated,
            tied=not large and "untie" not in name,
        ),
        layout=layout,
        sequence_length=number["seq"],
        micro_batch_size=number["mbs"],
        global_batch_size=number["gbs"],
        method=Method(
            recompute=(row.get("recompute") or "none").partition("/")[0] or "none",
            sequence_parallel=row.get("sp") == "True" and number["tp"] > 1,
            fused_attention=is_fused(name, number["cp"]),
            distributed_optimizer=row.get("distopt") == "True",
        ),
    )


def is_fused(name: str, context: int) -> bool:
    """Whether a test runs with flash attention."""
    return context > 1 or "memory_speed" in name or ("resume" in name and "_te_" in name)


def predicted_gb(row: Row) -> float:
    """Peak of the allocator on the last rank, which is the one that Megatron-LM logs, in GB."""
    job = job_of_row(row)
    return stage_memory(job, job.layout.pipeline - 1).allocated / 1e9


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
