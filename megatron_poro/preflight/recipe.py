"""The run file against the recipe that it names: what it changes, also in sections that `poro train` does not read."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_poro.config import recipes
from megatron_poro.preflight.case import Case
from megatron_poro.preflight.findings import Finding, green, yellow

FREE = {"parallel", "training.micro_batch_size", "training.steps", "model.shape", "sft.packing"}
"""What does not change what is learned, or is looked at apart."""
_CARDS = "Poro 2's model cards and playbook"


def check_keys(case: Case) -> Iterator[Finding]:
    """Each value that the run file has otherwise than its recipe, with both."""
    if not case.recipe:
        return
    name = case.config.recipe
    changed = [(key, ours, theirs) for key, ours, theirs in _differences(case) if not key.startswith(("sft.", "dpo."))]
    for key, ours, theirs in changed:
        yield yellow("recipe.keys", f"{key} is {ours}, {theirs} in recipe {name}; leave it out if that is not meant", _CARDS)
    if length := _length(case):
        yield length
    if not changed and not length:
        yield green("recipe.keys", f"all of {name} as published")


def _differences(case: Case) -> Iterator[tuple[str, Any, Any]]:
    plain = asdict(case.config)
    for section, table in case.recipe.items():
        for key, theirs in table.items() if isinstance(table, Mapping) else ():
            name = f"{section}.{key}"
            ours = (plain.get(section) or {}).get(key)
            if section not in FREE and name not in FREE and ours != theirs:
                yield name, ours, theirs


def _length(case: Case) -> Finding | None:
    """A run that is not as long as the recipe's, in tokens."""
    training, data = case.recipe["training"], case.recipe["data"]
    theirs = training["steps"] * training["global_batch_size"] * data["sequence_length"]
    ours = case.duration.num_tokens
    if ours == theirs:
        return None
    return yellow(
        "recipe.keys",
        f"training: {case.duration.num_steps:,} steps read {ours:,} tokens, {ours / theirs:.0%} of the {theirs:,} "
        f"({training['steps']:,} steps) of recipe {case.config.recipe}; leave training.steps and training.tokens out for its "
        "length",
        _CARDS,
    )


def check_post_training(case: Case) -> Iterator[Finding]:
    """[sft] and [dpo]: what they change, where recipes of two sizes disagree, and whose tokens the loss counts."""
    changed = [each for each in _differences(case) if each[0].startswith(("sft.", "dpo."))]
    others = [name for name in recipes() if name != case.config.recipe]
    for key, ours, theirs in changed:
        section, _, leaf = key.partition(".")
        same = ", ".join(name for name in others if recipes()[name].get(section, {}).get(leaf) == theirs)
        also = f" and in {same}" if same else ""
        yield yellow(
            "recipe.post_training", f"{key} is {ours}, {theirs} in recipe {case.config.recipe}{also}; make them the same", _CARDS
        )
    if case.config.sft and case.config.sft.packing:
        yield yellow(
            "recipe.post_training",
            "sft.packing (true): no key says that the loss leaves prompts out; Poro 2's trainer counted them, and a completion "
            "mask that packing drops is not seen; set it in the trainer and look at a packed batch",
            "https://github.com/huggingface/trl/issues/3728",
        )
    elif case.recipe and not changed:
        yield green("recipe.post_training", "as published")


def check_paths(case: Case) -> Iterator[Finding]:
    """Absolute paths make a run file that only its author can run. What they lead to, others check."""
    found = [f"{key} ({value})" for key, value in _paths(case.plain) if Path(value).is_absolute()]
    if found:
        yield yellow(
            "run.paths",
            f"{found[0]}{f' and {len(found) - 1} more' * (len(found) > 1)} are absolute: nobody else can run this file as it is, "
            "and nothing in it can move; paths are relative to the run file",
        )
    else:
        yield green("run.paths", "relative to the run file")


def _paths(plain: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The paths of a run file as they stand there, each with its key."""
    if isinstance(plain.get("run_directory"), str):
        yield "run_directory", plain["run_directory"]
    checkpoint, data = plain.get("checkpoint", {}), plain.get("data", {})
    if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get("initial"), str):
        yield "checkpoint.initial", checkpoint["initial"]
    for table in ("sources", "validation"):
        for n, entry in enumerate(data.get(table, ()) if isinstance(data, Mapping) else ()):
            if isinstance(entry, Mapping) and isinstance(entry.get("path"), str):
                yield f"data.{table}[{n}].path", entry["path"]
