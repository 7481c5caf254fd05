"""Which metrics make a chart, and its curves: thinned, smoothed, with the tokens beside the steps. figures.py draws them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_poro.report.run import Run
from megatron_poro.report.sampling import smooth, thin
from megatron_poro.report.series import Series

MOST_POINTS = 160_000
"""Of the whole page: 16 bytes each as base64, so about 2.5 MB."""
MOST_OF_CURVE = 4000
SMOOTHED = 1 / 100
LEAST_SMOOTHED = 10
"""Of a run's records: the window of the mean that is drawn over a noisy curve."""


@dataclass(frozen=True)
class Chart:
    """A chart of metrics of the catalog; a name that ends in `/*` is all of its table. `numbers` says how they are written."""

    title: str
    metrics: tuple[str, ...]
    unit: str = ""
    numbers: str = "plain"
    is_log: bool = False
    is_smoothed: bool = False
    has_points: bool = False


CHARTS = (
    Chart("Training loss", ("train/loss",), "nats per token", is_smoothed=True),
    Chart("Training loss by source", ("loss_by_source/*",), "nats per token", is_smoothed=True),
    Chart("Validation loss", ("validation_loss/*",), "nats per token", has_points=True),
    Chart("Validation perplexity", ("validation_perplexity/*",), is_log=True, has_points=True),
    Chart("Training perplexity", ("train/perplexity",), is_log=True),
    Chart("Learning rate", ("train/learning_rate",)),
    Chart("Gradient norm", ("train/gradient_norm",), "before clipping", is_log=True, is_smoothed=True),
    Chart("Parameter norm", ("train/parameter_norm",)),
    Chart("Throughput", ("throughput/tokens_per_second",), "tokens/s", "short", is_smoothed=True),
    Chart("Model FLOPs utilisation", ("throughput/mfu", "throughput/mfu_full_attention"), "", "percent", is_smoothed=True),
    Chart("Model TFLOP/s per device", ("throughput/model_tflops_per_device",), "TFLOP/s", is_smoothed=True),
    Chart("Memory", ("memory/*",), "most of any rank", "bytes"),
    Chart("Step time by phase", ("time/*",), "", "seconds", is_smoothed=True),
    Chart("Tokens by source", ("tokens_by_source/*",), "tokens", "short"),
    Chart("Slowest rank / median", ("speed/*",)),
    Chart("Time to save a checkpoint", ("checkpoint/seconds",), "", "seconds", has_points=True),
    Chart("Time to validate", ("validation/seconds",), "", "seconds", has_points=True),
)


@dataclass(frozen=True)
class Curve:
    """A metric of a run, to be drawn. `mean` is its mean over `window` records, None where it is not smoothed."""

    label: str
    run: int
    entry: int
    points: "Points"
    mean: "Points | None"
    window: int
    last: float


@dataclass(frozen=True)
class Points:
    """[points] each: few enough to send, with every spike."""

    step: NDArray[np.int32]
    tokens: NDArray[np.float32]
    value: NDArray[np.float32]


def draw_up(runs: Sequence[Run]) -> Iterator[tuple[Chart, list[Curve]]]:
    """The charts that any of the runs has numbers for, with their curves."""
    found = [(chart, [_names(chart, run) for run in runs]) for chart in CHARTS]
    count = sum(len(names) * (1 + chart.is_smoothed) for chart, of_runs in found for names in of_runs)
    most = min(MOST_POINTS // max(count, 1), MOST_OF_CURVE)
    for chart, of_runs in found:
        if entries := list(dict.fromkeys(name for names in of_runs for name in names)):
            curves = [
                _curve(chart, runs, run, entry=entries.index(name), name=name, most=most)
                for run, names in enumerate(of_runs)
                for name in names
            ]
            yield chart, curves


def _names(chart: Chart, run: Run) -> list[str]:
    """The metrics of a chart that a run has."""
    tables = tuple(name[:-1] for name in chart.metrics if name.endswith("/*"))
    return [name for name in run.history.series if name in chart.metrics or (tables and name.startswith(tables))]


def _curve(chart: Chart, runs: Sequence[Run], run: int, *, entry: int, name: str, most: int) -> Curve:
    series = runs[run].history[name]
    values = series.values
    finite = values[np.isfinite(values)]
    window = max(round(len(values) * SMOOTHED), LEAST_SMOOTHED)
    own = name.partition("/")[2].replace("_", " ")
    is_smoothed = chart.is_smoothed and len(values) > 5 * LEAST_SMOOTHED
    return Curve(
        label=own if len(runs) == 1 else runs[run].name if chart.metrics == (name,) else f"{runs[run].name}: {own}",
        run=run,
        entry=entry,
        points=_points(runs[run], series, values, chart=chart, most=most),
        mean=_points(runs[run], series, smooth(values, window), chart=chart, most=most) if is_smoothed else None,
        window=window,
        last=float(finite[-1]) if len(finite) else float("nan"),
    )


def _points(run: Run, series: Series, values: NDArray[np.float64], *, chart: Chart, most: int) -> Points:
    """Infinite ones, and those that a logarithm cannot show, are gaps."""
    shown = np.where(np.isfinite(values) & ((values > 0) | (not chart.is_log)), values, np.nan)
    chosen = thin(shown, most)
    steps = series.steps[chosen]
    return Points(steps.astype(np.int32), run.history.tokens_at(steps).astype(np.float32), shown[chosen].astype(np.float32))
