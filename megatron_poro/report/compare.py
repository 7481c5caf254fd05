"""Two runs side by side: what their run files say differently, and their losses at equal tokens, whatever their batch sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_poro.config.parse import to_plain
from megatron_poro.data.table import render_table
from megatron_poro.errors import PoroError
from megatron_poro.report.run import Run, load_runs
from megatron_poro.report.series import Series

NUM_POINTS = 6
WINDOW = 1 / 50
"""Of the tokens that both runs have: what a training loss is the mean over."""
LEAST_STEPS = 10
"""The window has so many steps of the run with the larger ones at least."""
NOT_COMPARED = ("run_directory", "checkpoint.allow_changed")
TRAINING = ("train/loss", "loss_by_source/")
VALIDATION = ("validation_loss/",)


@dataclass(frozen=True)
class Difference:
    """A key of the run files; None where a run has no such key."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True)
class LossPair:
    """A loss of both runs at `tokens`; None where a run has none around there."""

    metric: str
    tokens: int
    a: float | None
    b: float | None

    @property
    def difference(self) -> float | None:
        """B - A."""
        return None if self.a is None or self.b is None else self.b - self.a


@dataclass(frozen=True)
class Comparison:
    """Two runs, compared. Training losses are means over the `window_tokens` before a point; validation lies on a straight line
    between the validations before and after it.
    """

    a: str
    b: str
    tokens: tuple[int, int]
    window_tokens: int
    config: list[Difference]
    config_problem: str
    losses: list[LossPair]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "losses": [{**asdict(pair), "difference": pair.difference} for pair in self.losses]}

    def as_table(self) -> str:
        """As text: the runs, what differs in their run files, and the losses."""
        lines = [f"A  {self.a}: {self.tokens[0]:,} tokens", f"B  {self.b}: {self.tokens[1]:,} tokens", ""]
        if self.config_problem:
            lines += [f"config not compared: {self.config_problem}", ""]
        elif self.config:
            lines += [
                render_table([["config", "A", "B"], *([each.key, _plain(each.a), _plain(each.b)] for each in self.config)]),
                "",
            ]
        else:
            lines += ["The run files say the same.", ""]
        rows = [
            [pair.metric, f"{pair.tokens:,}", *map(_number, (pair.a, pair.b)), _signed(pair.difference)] for pair in self.losses
        ]
        lines += [render_table([["loss, nats per token", "at tokens", "A", "B", "B - A"], *rows]), ""]
        lines.append(f"Training losses are means over the {self.window_tokens:,} tokens before; validation losses between two")
        lines.append("validations are on the straight line between them.")
        return "\n".join(lines)


def compare_runs(a: Path, b: Path, at: Sequence[int] = ()) -> Comparison:
    """Compare two runs, at given numbers of tokens or at some that both have. Raises PoroError when they have none in common."""
    one, other = runs = load_runs([a, b])
    end = min(run.history.last_tokens for run in runs)
    metrics = [name for name in _losses(one) if name in other.history.series]
    if not end or not metrics:
        why = [f"{run.directory} has no step yet" for run in runs if not run.history.last_tokens]
        raise PoroError(f"{a} and {b} have nothing in common: {'; '.join(why) or 'not one loss of the same name'}")
    if beyond := [tokens for tokens in at if not 0 < tokens <= end]:
        raise PoroError(f"--at {beyond[0]}: both runs have 1 to {end} tokens; give numbers between them")
    window = max(int(end * WINDOW), LEAST_STEPS * max(_step_tokens(run) for run in runs))
    points = sorted(set(at)) or [end * n // NUM_POINTS for n in range(1, NUM_POINTS + 1)]
    losses = [LossPair(name, tokens, *(_loss(run, name, tokens, window) for run in runs)) for name in metrics for tokens in points]
    problem = next((run.problem for run in runs if run.problem), "")
    differences = [] if problem else list(_config_differences(one, other))
    ends = (one.history.last_tokens, other.history.last_tokens)
    return Comparison(str(a), str(b), ends, min(window, end), differences, problem, losses)


def _losses(run: Run) -> list[str]:
    return [name for kind in (*TRAINING, *VALIDATION) for name in run.history.series if name.startswith(kind)]


def _step_tokens(run: Run) -> int:
    """Tokens from one written step to the next, at most."""
    tokens = run.history["progress/tokens"].values
    return int(np.max(np.diff(tokens, prepend=0.0)))


def _loss(run: Run, name: str, tokens: int, window: int) -> float | None:
    series = run.history[name]
    at = run.history.tokens_at(series.steps)
    if name.startswith(VALIDATION):
        return float(np.interp(tokens, at, series.values)) if at[0] <= tokens <= at[-1] else None
    return _mean(series, at, tokens, window)


def _mean(series: Series, at: Any, tokens: int, window: int) -> float | None:
    """Mean over the tokens of the window; steps that were skipped for a loss that is not finite have no part in it."""
    inside = (at > tokens - window) & (at <= tokens) & np.isfinite(series.values)
    if not inside.any():
        return None
    return float(np.average(series.values[inside], weights=np.diff(at, prepend=0.0)[inside]))


def _config_differences(one: Run, other: Run) -> Iterator[Difference]:
    a, b = (dict(_flatten("", to_plain(run.config))) for run in (one, other))
    for key in [*a, *(key for key in b if key not in a)]:
        if a.get(key) != b.get(key) and key not in NOT_COMPARED:
            yield Difference(key, a.get(key), b.get(key))


def _flatten(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted keys; tables in a list go by their name where they have one, else by their number."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else key, inner)
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        for number, inner in enumerate(value):
            yield from _flatten(f"{prefix}.{inner.get('name', number)}", inner)
    else:
        yield prefix, value


def _plain(value: Any) -> str:
    return "-" if value is None else str(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"
