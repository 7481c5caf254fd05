"""The wandb workspace of a run's project, made by `wandb-workspaces` from the catalog of metrics: `poro dashboard RUN.toml`."""

import importlib
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_poro.config import RunConfig, load_run
from megatron_poro.errors import ConfigError, WandbError
from megatron_poro.observe.wandb import STEP, first_line, has_key

Panel = tuple[str, Sequence[str]]
"""Title and metrics; one that ends in `/*` stands for all of its section."""
TOKENS = "progress/tokens"

SECTIONS: dict[str, Sequence[Panel]] = {
    "Loss": [
        ("Training loss", ["train/loss"]),
        ("Loss by source", ["loss_by_source/*"]),
        ("Loss by validation set", ["validation_loss/*"]),
        ("Perplexity by validation set", ["validation_perplexity/*"]),
    ],
    "Optimizer": [
        ("Learning rate", ["train/learning_rate"]),
        ("Gradient norm", ["train/gradient_norm"]),
        ("Parameter norm", ["train/parameter_norm"]),
        ("Steps that changed the weights", ["train/updated"]),
    ],
    "Speed": [
        ("Tokens per second", ["throughput/tokens_per_second"]),
        ("Tokens per second and device", ["throughput/tokens_per_second_per_device"]),
        ("Model TFLOP/s per device", ["throughput/model_tflops_per_device"]),
        ("MFU", ["throughput/mfu", "throughput/mfu_full_attention"]),
    ],
    "Memory": [("Device", ["memory/device"]), ("Host", ["memory/host"])],
    "Goodput and restarts": [
        ("Goodput", ["run/goodput"]),
        ("Starts", ["run/starts"]),
        ("Parts of a step", ["time/*"]),
        ("Training stood still for saves", ["time/save_stall"]),
        ("Checkpoints", ["checkpoint/seconds"]),
    ],
    "Stragglers": [("Slowest rank / median", ["speed/*"]), ("Longest wait for data", ["time/data_wait"])],
}


def render_dashboard(path: Path) -> str:
    """The workspace for the project that a run file names, as the JSON that wandb is sent."""
    return json.dumps(_build(load_run(path))._to_model().model_dump(by_alias=True), indent=1, default=str)


def save_dashboard(path: Path) -> str:
    """Write it to the server; returns where it is. Raises WandbError without a key or a server that takes it."""
    config = load_run(path)
    workspace = _build(config)
    if not has_key():
        raise WandbError("no wandb key: `wandb login`, or set WANDB_API_KEY; --dry-run needs none")
    try:
        workspace.entity = workspace.entity or str(importlib.import_module("wandb").Api().default_entity)
        return f"workspace of {config.observe.wandb_project}: {workspace.save().url}"
    except Exception as error:
        raise WandbError(f"wandb does not take the workspace: {first_line(error)}") from None


def _build(config: RunConfig) -> Any:
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError(["wandb-workspaces is not installed; `pip install wandb-workspaces`"])
    if not config.observe.wandb_project:
        raise ConfigError(["observe.wandb_project is empty; name the project that the workspace is for"])
    workspaces: Any = importlib.import_module("wandb_workspaces.workspaces")
    reports: Any = importlib.import_module("wandb_workspaces.reports.v2")
    sections = {title: [_plot(reports, *panel) for panel in panels] for title, panels in SECTIONS.items()}
    sections["Data"] = [_plot(reports, "Tokens by source", ["tokens_by_source/*"]), *_shares(reports, config)]
    return workspaces.Workspace(
        name=f"{config.observe.wandb_project}: training",
        entity=config.observe.wandb_entity,
        project=config.observe.wandb_project,
        sections=[workspaces.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=workspaces.WorkspaceSettings(x_axis=STEP),
        auto_generate_panels=False,
    )


def _plot(reports: Any, title: str, names: Sequence[str]) -> Any:
    if names[0].endswith("/*"):
        return reports.LinePlot(title=title, x=STEP, metric_regex=f"^{re.escape(names[0][:-1])}.*")
    return reports.LinePlot(title=title, x=STEP, y=list(names))


def _shares(reports: Any, config: RunConfig) -> list[Any]:
    """For each source its share of the tokens, beside what the mix plans; stages plan in turn, so theirs are drawn one by one."""
    mixes = [{part.name: part.weight for part in config.data.sources}, *(stage.weights for stage in config.data.stages)]
    planned = {part.name: [mix.get(part.name, 0.0) / sum(mix.values()) for mix in mixes] for part in config.data.sources}
    return [
        reports.LinePlot(
            title=f"Share of {name}, read and planned",
            x=STEP,
            y=[f"tokens_by_source/{name}", TOKENS],
            custom_expressions=[
                f"${{tokens_by_source/{name}}} / ${{{TOKENS}}}",
                *(f"{share:.6g} + 0 * ${{{TOKENS}}}" for share in shares),
            ],
        )
        for name, shares in planned.items()
    ]
