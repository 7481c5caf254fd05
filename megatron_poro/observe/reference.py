"""docs/metrics.md from the catalog: `python -m megatron_poro.observe.reference >docs/metrics.md`, or `make docs`."""

from megatron_poro.observe.catalog import METRICS
from megatron_poro.observe.flops import PEAKS

HEAD = """# Metrics
Made from `megatron_poro/observe/catalog.py` by `make docs`; wandb, TensorBoard and the report use these names. `/*` stands for one
metric for each source, held-out set or phase. Records of `RUN/metrics.jsonl` have them under the key of the second column, in lines
whose `event` is that of the third; `megatron_poro/observe/jsonl.py` tells the other lines.

| metric | key | event | unit | what it is | from |
|---|---|---|---|---|---|
"""
TAIL = """
## FLOPs and peaks
Model FLOPs of a token are those of the forward and backward products: 6 for each weight that a token meets, and 12 x heads x head
size x positions for attention's scores and values. `throughput/mfu` counts the half of the positions that a causal mask leaves,
`throughput/mfu_full_attention` all of them; neither counts what recomputation does twice. For Llama 3.1 70B at 8,192 tokens that is
449.2 and 481.4 GFLOP a token. Both are divided by the dense bf16 peak of the device, in TFLOP/s, known for:

| device | peak |
|---|---|
"""
LAST = """
An MI250X is two devices (GCDs) of 191.5 each. On a CPU the peak is what a matrix product of one rank reaches at the start, beside
whatever else runs there; MFU is left out for devices that are not in the table.
"""


def render_metrics() -> str:
    """The page, in Markdown."""
    rows = [f"| `{it.name}` | `{it.key}` | {it.event} | {it.unit} | {it.meaning} | {it.source} |" for it in METRICS]
    peaks = [f"| {name} | {peak:g} |" for name, peak in PEAKS.items()]
    return HEAD + "\n".join(rows) + "\n" + TAIL + "\n".join(peaks) + "\n" + LAST


if __name__ == "__main__":
    print(render_metrics(), end="")
