"""The planner against published runs that nobody here made.

    python benchmarks/planner.py --runs FILE.csv [--memory FILE.csv] [--fit] [--plot FILE.svg] [--markdown]

Either file may be given alone. `--runs` predicts throughput, `--memory` the allocator's peak on the rank that was logged; each
prints prediction, measurement and error of every row, every row that cannot be used with the reason, then median and 90th
percentile. The constants were fitted on the documents that calibration.py names; the errors that count are those of all others.
`--fit` splits the file's documents by their SHA-256 (`training_sources`), fits on one half and tests on the other, then the other
way round: on published_runs.csv that gives the constants again. The last line is JSON.
"""

import sys

sys.path.pop(0)  # this folder: its tokenize.py must not stand in for the standard library's

import argparse
import csv
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from megatron_poro.planning import measured_memory, published_runs
from megatron_poro.planning.calibration import TRAINING
from megatron_poro.planning.pictures import Dot, draw_scatter
from megatron_poro.planning.published_runs import Prediction, Row

FIXED = [step / 20 for step in range(13)]


def main() -> None:
    """Predict what was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--memory", type=Path)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--markdown", action="store_true", help="tables of Markdown")
    args = parser.parse_args()
    if not (args.runs or args.memory):
        parser.error("give --runs or --memory, or both")
    report: dict[str, Any] = {}
    panels = []
    if args.runs:
        predictions, report["runs"] = predict_runs(read(args.runs), args)
        panels.append(("tokens/s a device", predictions))
    if args.memory:
        dots, report["memory"] = predict_memory(read(args.memory), args)
        panels.append(("peak memory, GB", dots))
    if args.plot:
        args.plot.write_text(draw_scatter(panels, "the planner's predictions of published runs"), encoding="utf-8")
    print(json.dumps(report))


def read(path: Path) -> list[Row]:
    """The rows of a CSV."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def predict_runs(rows: Sequence[Row], args: argparse.Namespace) -> tuple[list[Dot], dict[str, Any]]:
    """Throughput of every row, and the errors of the half that nothing was fitted on."""
    usable = [row for row in rows if not published_runs.unusable(row)]
    training = set(TRAINING)
    table(("source", "device", "devices", "model", "numbers", "half", "predicted", "measured", "error"), args)
    found: list[tuple[str, Prediction]] = []
    for row in usable:
        prediction = published_runs.predict(row, published_runs.machine_of_row(row))
        half = "training" if published_runs.source_key(row) in training else "held out"
        found.append((half, prediction))
        names = (row["source"], prediction.device, row["n_gpus"], row["model"], row["precision"], half)
        line((*names, f"{prediction.predicted:.1f}", f"{prediction.measured:.1f}", f"{prediction.error:+.1%}"), args)
    refused(rows, published_runs.unusable, lambda row: f"{row['source']}, {row['model']}, {row['n_gpus']} x {row['gpu']}")
    bf16 = [(half, each) for half, each in found if each.row["precision"] == "bf16"]
    report = {
        "held_out_bf16": summary(each.error for half, each in bf16 if half == "held out"),
        "held_out_bf16_and_fp16": summary(each.error for half, each in found if half == "held out"),
        "training": summary(each.error for half, each in found if half == "training"),
        "all_bf16": summary(each.error for _, each in bf16),
        "unusable": len(rows) - len(usable),
    }
    report["bracket"] = check_brackets(rows)
    print_summaries("throughput", report)
    if args.fit and usable:
        report["fits"] = refit(usable, published_runs.training_sources(usable))
    dots = [Dot(each.measured, each.predicted, f"{each.device}, {half}") for half, each in found]
    return dots, report


def check_brackets(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows of devices with a published plateau, of Megatron's family, with TFLOP/s: are they in the bracket?"""
    inside = outside = 0
    for row in rows:
        verdict = published_runs.in_bracket(row)
        if verdict is None:
            continue
        rate, low, high = verdict
        inside, outside = inside + (low <= rate <= high), outside + (not low <= rate <= high)
        name = f"{row['source']}, {row['model']}, {row['n_gpus']} x {row['gpu']}"
        print(f"bracket: {name}: {rate:.1f} TFLOP/s, published rates {low:.1f} to {high:.1f}")
    return {"inside": inside, "outside": outside}


def refit(usable: Sequence[Row], training: set[str]) -> dict[str, Any]:
    """Constants of the training half, and of the other half, with the errors on the half that each was not fitted on."""
    machines = {device: published_runs.machine_of_row({"gpu": device}) for device in published_runs.CLUSTERS}
    report = {}
    for name, is_training in (("training half", True), ("other way round", False)):
        chosen = [row for row in usable if (published_runs.source_key(row) in training) == is_training]
        rest = [row for row in usable if row not in chosen and row["precision"] == "bf16"]
        fixed, efficiency = published_runs.fit(chosen, machines, FIXED)
        fitted = {device: published_runs.with_constants(machines[device], fixed, value) for device, value in efficiency.items()}
        errors = [published_runs.predict(row, fitted[published_runs.device_of(row)]).error for row in rest]
        report[name] = {"fixed_seconds": fixed, "efficiency": efficiency, "bf16_errors_on_the_rest": summary(errors)}
        print(f"fitted on the {name}: {report[name]}")
    return report


def predict_memory(rows: Sequence[Row], args: argparse.Namespace) -> tuple[list[Dot], dict[str, Any]]:
    """Peak memory of every row."""
    usable = [row for row in rows if not measured_memory.unusable(row)]
    if not args.markdown:
        table(("test", "file", "predicted GB", "measured GB", "error"), args)
    dots, errors = [], []
    by_test: dict[tuple[str, str], list[float]] = {}
    for row in usable:
        predicted, measured = measured_memory.predicted_gb(row), float(row["mem_max_gb"])
        errors.append(predicted / measured - 1)
        dots.append(Dot(measured, predicted, "dense"))
        by_test.setdefault((row["test"], f"{predicted:.2f}"), []).append(measured)
        if not args.markdown:
            line((row["test"], row.get("file", ""), f"{predicted:.2f}", f"{measured:.2f}", f"{errors[-1]:+.1%}"), args)
    if args.markdown:
        memory_table(by_test, args)
    refused(rows, measured_memory.unusable, lambda row: row["test"])
    report = {"dense": summary(errors), "unusable": len(rows) - len(usable)}
    print_summaries("memory", report)
    return dots, report


def memory_table(by_test: dict[tuple[str, str], list[float]], args: argparse.Namespace) -> None:
    """Rows of one test and prediction on a line, with how often each measurement stands there."""
    table(("test", "predicted GB", "measured GB (rows)", "errors"), args)
    for (test, predicted), measured in by_test.items():
        counts = sorted(Counter(f"{value:.2f}" for value in measured).items())
        errors = [float(predicted) / value - 1 for value in (min(measured), max(measured))]
        line((test, predicted, ", ".join(f"{value} ({n})" for value, n in counts), f"{errors[1]:+.1%} to {errors[0]:+.1%}"), args)


def summary(errors: Iterable[float]) -> dict[str, float] | None:
    """Median, 90th percentile and largest of the absolute relative errors; None without rows."""
    values = sorted(abs(error) for error in errors)
    if not values:
        return None
    high = values[min(len(values) - 1, round(0.9 * (len(values) - 1) + 0.499))]
    return {
        "rows": len(values),
        "median": round(statistics.median(values), 4),
        "p90": round(high, 4),
        "largest": round(values[-1], 4),
    }


def print_summaries(what: str, report: dict[str, Any]) -> None:
    """A line for each group of rows."""
    for name, found in report.items():
        if isinstance(found, dict) and "median" in found:
            print(
                f"{what}, {name.replace('_', ' ')}: {found['rows']} rows, median error {found['median']:.1%}, 90th percentile "
                f"{found['p90']:.1%}, largest {found['largest']:.1%}"
            )


def refused(rows: Sequence[Row], why: Any, name: Any) -> None:
    """Every row that cannot be used, equal ones counted."""
    counts = Counter(f"{name(row)}: {why(row)}" for row in rows if why(row))
    for text, count in counts.items():
        print(f"not used: {text}" + (f" ({count} rows)" if count > 1 else ""))


def table(names: Sequence[str], args: argparse.Namespace) -> None:
    """The head of a table."""
    line(names, args)
    if args.markdown:
        print("|" + "---|" * len(names))


def line(cells: Sequence[str], args: argparse.Namespace) -> None:
    """A row of it."""
    print("| " + " | ".join(cells) + " |" if args.markdown else "  ".join(cells))


if __name__ == "__main__":
    main()
