"""What came out of the demo, checked and shown: losses before and after, transformers' losses, a sample, the ledger, a picture."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_poro.config import RunConfig, load_run
from megatron_poro.config.duration import duration_of
from megatron_poro.data import TrainingData
from megatron_poro.data.ledger import ledger_at
from megatron_poro.observe import Record, read_metrics

FULL_STEPS = 240
PROMPT = "Suomen"
AGREEMENT = 1e-5
FINNISH_FALL = 1 / 3
OTHERS_RISE = 0.10


@dataclass(frozen=True)
class Losses:
    """Mean loss per token of each domain's held-out text, in nats."""

    before: dict[str, float]
    after: dict[str, float]
    transformers: dict[str, float]


def summarise(out: Path, *, steps: int, seconds: float) -> int:
    """Print the summary, write `summary.json` and `loss.png`; 0 when every promise held, else 1."""
    config = load_run(out / "continued.toml")
    records = read_metrics(out / "runs" / "continued" / "metrics.jsonl")
    data = TrainingData(config.data)
    losses, sample = _measure(config, records, data, out / "final-hf")
    ledger = ledger_at(data.order, duration_of(config).num_samples)
    promises = _check_promises(losses, full=steps >= FULL_STEPS)
    picture = _draw(out, config)
    print(f"\n=== 6. What came out\n\n{_render_losses(losses)}\n\nA sample in Finnish, after {PROMPT!r}:\n  {sample}\n")
    print(f"Tokens read by the continued pretraining:\n{ledger.as_table()}\n")
    if steps < FULL_STEPS:
        print(f"What the model learns is checked from {FULL_STEPS} steps on; this was a trial of {steps}.")
    for promise, held in promises.items():
        print(f"{'ok  ' if held else 'MISS'}  {promise}")
    print(f"\nEverything lies in {out}:\n{_render_places(picture)}\n\nDone in {seconds / 60:.1f} minutes.")
    summary = {
        "losses": {"before": losses.before, "after": losses.after, "transformers": losses.transformers},
        "ledger": ledger.as_dict(),
        "sample": sample,
        "promises": promises,
        "steps": steps,
        "seconds": round(seconds, 1),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False), encoding="utf-8")
    return 0 if all(promises.values()) else 1


def _measure(config: RunConfig, records: list[Record], data: TrainingData, model: Path) -> tuple[Losses, str]:
    """Losses by the engine (first and last validation) and by transformers on the exported model, and a generated sample."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    validations = [record["losses"] for record in records if record["event"] == "validation"]
    disable_progress_bar()
    llama: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    theirs = {}
    with torch.no_grad():
        for name, held_out in data.validation.items():
            rows = torch.from_numpy(held_out.samples(range(held_out.num_samples))).long()  # [samples, seq + 1]
            logits = llama(rows[:, :-1]).logits.flatten(0, 1)  # [samples * seq, vocab]
            theirs[name] = float(torch.nn.functional.cross_entropy(logits.double(), rows[:, 1:].flatten()))
        tokenizer: Any = AutoTokenizer.from_pretrained(model)
        torch.manual_seed(3)
        prompt = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
        ids = llama.generate(**prompt, max_new_tokens=48, do_sample=True, temperature=0.7, top_k=40)
    text = tokenizer.decode(ids[0], skip_special_tokens=True)
    return Losses(validations[0], validations[-1], theirs), " ".join(text.split())


def _check_promises(losses: Losses, *, full: bool) -> dict[str, bool]:
    """What the demo promises; what it learns is promised for the full number of steps only."""
    gap = max(abs(losses.after[name] - loss) / loss for name, loss in losses.transformers.items())
    promises = {f"transformers gives the engine's losses within {AGREEMENT:g} relative (largest gap {gap:.1e})": gap <= AGREEMENT}
    if full:
        fall = 1 - losses.after["fi"] / losses.before["fi"]
        promises[f"Finnish loss fell by at least a third ({fall:.0%})"] = fall >= FINNISH_FALL
        for name in ("en", "code"):
            rise = losses.after[name] / losses.before[name] - 1
            promises[f"{name} loss rose by at most {OTHERS_RISE:.0%} ({rise:+.0%})"] = rise <= OTHERS_RISE
    return promises


def _render_losses(losses: Losses) -> str:
    lines = [
        "Validation loss by domain (nats per token):",
        f"{'domain':<8}{'before':>10}{'after':>10}{'change':>9}{'transformers':>14}",
    ]
    for name, before in losses.before.items():
        after = losses.after[name]
        lines.append(f"{name:<8}{before:>10.4f}{after:>10.4f}{after / before - 1:>+9.1%}{losses.transformers[name]:>14.4f}")
    return "\n".join(lines)


def _render_places(picture: bool) -> str:
    places = {
        "final-hf/": "the model, for transformers",
        "base-hf/": "the base model it was continued from",
        "runs/continued/checkpoints/": "Megatron checkpoints with their ledgers",
        "runs/continued/metrics.jsonl": "losses, learning rate, gradient norm of every step",
        "continued.toml": "the run file",
        "data/": "token files and manifests",
        "summary.json": "this summary",
    }
    if picture:
        places["loss.png"] = "the loss curves"
    return "\n".join(f"  {path:<30}{what}" for path, what in places.items())


def _draw(out: Path, config: RunConfig) -> bool:
    """The loss curves of both runs as a picture; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.5))
    for index, (run, colour) in enumerate((("base", "0.6"), ("continued", "0.25"))):
        records = read_metrics(out / "runs" / run / "metrics.jsonl")
        offset = index * config.training.steps
        steps = [record for record in records if record["event"] == "step"]
        axes.plot(
            [offset + r["step"] for r in steps], [r["loss"] for r in steps], color=colour, linewidth=0.8, label=f"{run}: training"
        )
        validations = [record for record in records if record["event"] == "validation"]
        for domain, line in zip(config.data.validation, ("C0o-", "C1s-", "C2^-", "C3d-"), strict=False):
            points = [(offset + r["step"], r["losses"][domain.name]) for r in validations]
            axes.plot(*zip(*points, strict=True), line, markersize=4, label=f"validation {domain.name}" if index else None)
    axes.axvline(config.training.steps, color="0.8", linestyle=":")
    axes.set(xlabel="step (the continued pretraining starts at the dotted line)", ylabel="loss (nats per token)")
    axes.legend(fontsize=8, ncol=2)
    figure.tight_layout()
    figure.savefig(out / "loss.png", dpi=110)
    pyplot.close(figure)
    return True
