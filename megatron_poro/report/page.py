"""The report: one file of HTML with everything in it, charts, script and style; no network is asked for anything."""

import contextlib
import json
import math
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from megatron_poro import __version__
from megatron_poro.errors import PoroError
from megatron_poro.report.charts import Chart, Curve, Points, draw_up
from megatron_poro.report.figures import DASHES, MARK_COLOURS, Canvas, colour_of, embed, library
from megatron_poro.report.headline import headline
from megatron_poro.report.html import Html, join, tag
from megatron_poro.report.proofs import READ_BYTES
from megatron_poro.report.run import Mark, Run, load_runs, marks_of
from megatron_poro.report.sections import sections

MARK_NAMES = {"restart": "restart", "rollback": "rollback", "skipped": "skipped step", "mix": "mix changes"}


def write_report(directories: Sequence[Path], out: Path, *, read_bytes: float = READ_BYTES) -> None:
    """Write the report of a run, or of several over each other, whole or not at all.

    Files of checkpoints are hashed up to `read_bytes` in all. Raises PoroError for no run, and where `out` cannot be.
    """
    page = build_page(load_runs(list(directories)), read_bytes=read_bytes)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.write_text(page, encoding="utf-8", errors="replace")
        partial.replace(out)
    except OSError as error:
        raise PoroError(f"{out}: cannot be written ({error.strerror}); give another file with -o") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def build_page(runs: Sequence[Run], *, read_bytes: float = READ_BYTES) -> str:
    """The report as HTML."""
    charts = list(draw_up(runs))
    marks = [(run, mark) for run in runs for mark in marks_of(run)]
    below = sections(runs[0], read_bytes=read_bytes) if len(runs) == 1 else join(_folded(run, read_bytes) for run in runs)
    main = [headline(runs), *_charts(runs, charts, marks), below, tag("p", f"megatron_poro {__version__}", class_="faint small")]
    return _FRAME.format(
        title=tag("title", ", ".join(run.name for run in runs)),
        style=_text("page.css"),
        main=tag("main", *main),
        page=_json(_page_data(runs, marks)),
        charts=_draw(runs, charts, marks),
        library=library(),
        script=_text("page.js"),
    )


_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">{title}<style>{style}</style></head>
<body>{main}
<script type="application/json" id="page-data">{page}</script>
<script type="application/json" id="charts-data">{charts}</script>
<script>{library}</script>
<script>{script}</script>
</body></html>
"""


def _text(name: str) -> str:
    return resources.files("megatron_poro.report").joinpath(name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that no text in it can lead out of its script element."""
    return json.dumps(value).replace("<", "\\u003c")


def _folded(run: Run, read_bytes: float) -> Html:
    return tag("details", tag("summary", run.name), sections(run, read_bytes=read_bytes), style="margin-top:24px")


def _charts(runs: Sequence[Run], charts: Sequence[tuple[Chart, list[Curve]]], marks: Sequence[tuple[Run, Mark]]) -> list[Html]:
    if not charts:
        return [tag("p", "no step was written down yet")]
    boxes = [_box(number, chart, curves, len(runs)) for number, (chart, curves) in enumerate(charts)]
    return [tag("h2", "Curves"), _controls(runs, {mark.kind for _, mark in marks}), tag("div", *boxes, class_="charts")]


def _controls(runs: Sequence[Run], kinds: set[str]) -> Html:
    """What is on the x axis, what dragging does, and which marks are shown."""

    def choice(name: str, value: str, *, pressed: bool) -> Html:
        return tag("button", value, name=name, value=value, type="button", aria_pressed=str(pressed).lower())

    marks = [
        tag("button", tag("i", class_="mark", style=f"color:{colour}"), tag("span", MARK_NAMES[kind]), **_chip(data_mark=kind))
        for kind, colour in MARK_COLOURS.items()
        if kind in kinds
    ]
    return tag(
        "div",
        tag("div", *(choice("axis", value, pressed=value == _axis(runs)) for value in ("step", "tokens")), class_="group"),
        tag("div", *(choice("mode", value, pressed=False) for value in ("read", "zoom", "pan")), class_="group"),
        tag("div", *(choice("heights", value, pressed=value == "fit") for value in ("fit", "spikes")), class_="group"),
        tag("div", tag("button", "show all", id="reset", type="button"), class_="group"),
        tag("div", *marks, class_="chips"),
        class_="controls",
    )


def _box(number: int, chart: Chart, curves: Sequence[Curve], num_runs: int) -> Html:
    windows = sorted({curve.window for curve in curves if curve.mean})
    smoothed = f"bold: mean of {' or '.join(map(str, windows))} records" if windows else ""
    title = tag(
        "div",
        tag("h3", chart.title),
        tag("span", ", ".join(filter(None, (chart.unit, smoothed))), class_="faint small"),
        tag("span", class_="at faint small"),
        class_="title",
    )
    chips = [_curve_chip(place, chart, curve, num_runs) for place, curve in enumerate(curves)]
    place = tag("div", id=f"chart-{number}", class_="place")
    wide = " wide" if number == 0 else ""
    box = tag("div", *chips, class_="chips")
    return tag("section", title, box, place, class_=f"chart{wide}", data_chart=number, data_numbers=chart.numbers)


def _curve_chip(place: int, chart: Chart, curve: Curve, num_runs: int) -> Html:
    is_table = len(chart.metrics) > 1 or chart.metrics[0].endswith("/*")
    line = tag(
        "i", class_=DASHES[curve.run % len(DASHES)] if is_table else None, style=f"color:{colour_of(curve, chart, num_runs)}"
    )
    last = "null" if math.isnan(curve.last) else repr(curve.last)
    return tag("button", line, tag("span", curve.label), tag("b"), **_chip(data_curve=place, data_last=last))


def _chip(**data: Any) -> dict[str, Any]:
    return {"class_": "chip", "type": "button", "aria_pressed": "true", **data}


def _axis(runs: Sequence[Run]) -> str:
    """Runs are compared at equal tokens: steps of another batch size are other steps."""
    return "tokens" if len(runs) > 1 else "step"


def _page_data(runs: Sequence[Run], marks: Sequence[tuple[Run, Mark]]) -> dict[str, Any]:
    step, tokens = max(run.history.last_step for run in runs), max(run.history.last_tokens for run in runs)
    said = [
        {
            "step": mark.step,
            "tokens": float(run.history.tokens_at(np.array([mark.step]))[0]),
            "text": mark.text if len(runs) == 1 else f"{run.name}: {mark.text}",
        }
        for run, mark in marks
    ]
    last = {"step": max(step, 1), "tokens": max(tokens, 1)}
    least = {"step": 5, "tokens": 5 * last["tokens"] / last["step"]}
    return {"axis": _axis(runs), "last": last, "least": least, "marks": said}


def _draw(runs: Sequence[Run], charts: Sequence[tuple[Chart, list[Curve]]], marks: Sequence[tuple[Run, Mark]]) -> str:
    points = {kind: _points([(run, mark) for run, mark in marks if mark.kind == kind]) for kind in MARK_COLOURS}
    last = max(1, *(run.history.last_step for run in runs))
    canvas = Canvas({kind: places for kind, places in points.items() if len(places.step)}, num_runs=len(runs), last=last)
    figures = [canvas.figure(number, chart, curves) for number, (chart, curves) in enumerate(charts)]
    return embed(figures) if figures else "null"


def _points(marks: Sequence[tuple[Run, Mark]]) -> Points:
    steps = np.array([mark.step for _, mark in marks], np.int32)
    tokens = [run.history.tokens_at(np.array([mark.step]))[0] for run, mark in marks]
    return Points(steps, np.array(tokens, np.float32), np.zeros(len(marks), np.float32))
