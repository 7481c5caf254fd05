"""The model card of an export: where the weights come from and what they were trained on, for whoever finds the folder."""

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megatron_poro.config.schema import RANDOM, ModelConfig, head_dim
from megatron_poro.conversion.megatron import MODEL, read_model_file
from megatron_poro.conversion.proof import name_of

CARD = "README.md"
_TRAINING_KEYS = (
    ("training", "steps"),
    ("training", "tokens"),
    ("training", "global_batch_size"),
    ("training", "batch_ramp"),
    ("data", "sequence_length"),
    ("optimizer", "learning_rate"),
    ("optimizer", "final_learning_rate"),
    ("optimizer", "schedule"),
    ("optimizer", "warmup_fraction"),
    ("optimizer", "warmup_steps"),
    ("optimizer", "warmup_tokens"),
    ("optimizer", "decay_fraction"),
    ("optimizer", "decay_steps"),
    ("optimizer", "decay_tokens"),
    ("optimizer", "decay_shape"),
    ("optimizer", "weight_decay"),
    ("training", "precision"),
)

_SILENT_WHEN_EMPTY = frozenset(
    {"steps", "tokens", "batch_ramp"}
    | {f"{part}_{unit}" for part in ("warmup", "decay") for unit in ("fraction", "steps", "tokens")}
)
"""Keys that say nothing where they are 0 or empty: another one says it."""


def write_card(directory: Path, checkpoint: Path, model: ModelConfig, proof: Mapping[str, Any], *, has_tokenizer: bool) -> None:
    """Write `README.md` from what the checkpoint says of itself, and the proof of its conversion."""
    parts = (
        _front_matter,
        partial(_model, directory, model),
        partial(_origin, checkpoint),
        partial(_training, checkpoint),
        partial(_ledger, checkpoint),
        partial(_conversion, proof),
        partial(_use, has_tokenizer),
    )
    lines = [line for part in parts for line in _lines(part)]
    (directory / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _lines(part: Callable[[], Iterator[str]]) -> list[str]:
    """The lines of a part; none when the checkpoint's own notes are not what they should be: a card says less, it stops nothing."""
    try:
        return list(part())
    except (TypeError, ValueError, AttributeError, KeyError):
        return []


def _front_matter() -> Iterator[str]:
    yield from ("---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [llama, megatron_poro]", "---", "")


def _model(directory: Path, model: ModelConfig) -> Iterator[str]:
    name = directory.name.removeprefix(".").removesuffix(".partial")
    yield from (f"# {name}", "")
    yield (
        f"A Llama of {model.num_layers} layers, width {model.hidden_size}, {model.num_attention_heads} query and "
        f"{model.num_key_value_heads} key/value heads of {head_dim(model)}, and {model.vocab_size:,} tokens."
    )
    yield ""


def _origin(checkpoint: Path) -> Iterator[str]:
    yield from ("## Where the weights come from", "")
    source = read_model_file(checkpoint)[1] if (checkpoint / MODEL).is_file() else {}
    yield f"Exported from the Megatron checkpoint `{name_of(checkpoint)}`."
    while isinstance(source, dict) and source.get("name"):
        known = f", weights SHA-256 `{source['weights_sha256']}`" if source.get("weights_sha256") else ""
        yield "It started from " + ("random weights." if source["name"] == RANDOM else f"`{source['name']}`{known}.")
        source = source.get("origin", {})
    yield ""


def _training(checkpoint: Path) -> Iterator[str]:
    """Where the run stood and its settings; nothing where the checkpoint was only converted."""
    state = _read(checkpoint / "state.json", json.loads)
    if not state:
        return
    yield from ("## Training", "", f"Steps: {state.get('step', 0):,}. Tokens: {state.get('tokens', 0):,}.", "")
    run = _read(checkpoint / "config.toml", tomllib.loads)
    if run.get("recipe"):
        yield from (f"Recipe: `{run['recipe']}`.", "")
    yield from ("| setting | value |", "|---|---|")
    is_wsd = run.get("optimizer", {}).get("schedule") == "wsd"
    for section, key in _TRAINING_KEYS:
        value = run.get(section, {}).get(key)
        says_something = value or (value is not None and key not in _SILENT_WHEN_EMPTY)
        if says_something and (is_wsd or not key.startswith("decay_")):
            yield f"| `{section}.{key}` | {_setting(value)} |"
    yield ""


def _setting(value: Any) -> str:
    """A setting on one line of a table."""
    if isinstance(value, list):
        return "; ".join(", ".join(f"{key} {number}" for key, number in table.items()) for table in value)
    return str(value)


def _ledger(checkpoint: Path) -> Iterator[str]:
    sources = _read(checkpoint / "state.json", json.loads).get("ledger", {}).get("sources", [])
    if not sources:
        return
    yield from ("| source | tokens | epochs |", "|---|---|---|")
    for entry in sources:
        yield f"| {entry.get('name')} | {entry.get('tokens', 0):,} | {entry.get('epochs', 0):.3f} |"
    yield ""


def _conversion(proof: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## Conversion", "")
    if proof["proved"]:
        cast = f" after the cast to {proof['cast']}" if proof["cast"] else ""
        yield f"All {len(proof['tensors'])} tensors were read back from disk and equal the checkpoint's bit for bit{cast};"
        yield f"`conversion.json` lists their hashes. Weights SHA-256 `{proof['target']['weights_sha256']}`."
    else:
        yield "The conversion was not proved (`--no-proof`)."
    yield from (f"megatron_poro {proof['versions']['megatron_poro']}, torch {proof['versions']['torch']}.", "")


def _use(has_tokenizer: bool) -> Iterator[str]:
    classes = "AutoModelForCausalLM, AutoTokenizer" if has_tokenizer else "AutoModelForCausalLM"
    yield from ("## Use", "", "```python", f"from transformers import {classes}", "")
    yield 'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")'
    if has_tokenizer:
        yield 'tokenizer = AutoTokenizer.from_pretrained(".")'
    yield "```"


def _read(path: Path, parse: Any) -> dict[str, Any]:
    """A file's content; empty where there is none or it is damaged."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
