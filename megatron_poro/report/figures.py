"""The charts as bokeh figures. No text that comes from a file is in them: names stand in the page, which escapes them."""

import json
from collections.abc import Sequence
from typing import Any

from megatron_poro.errors import PoroError
from megatron_poro.report.charts import Chart, Curve, Points

COLOURS = (
    "#2f7de1", "#d9730d", "#0f9d76", "#d64545", "#9059e0", "#0891b2", "#cf3f8f", "#76901a", "#a8641c", "#64748b",
)  # fmt: skip
"""Of curves, in contrast with a white and a black page alike."""
MARK_COLOURS = {"restart": "#64748b", "rollback": "#cf3f8f", "skipped": "#d64545", "mix": "#9059e0"}
DASHES = ("solid", "dashed", "dotted", "dashdot")
HEIGHTS = (340, 260)
"""In pixels, of the first figure and of the others."""


def colour_of(curve: Curve, chart: Chart, num_runs: int) -> str:
    """A curve's colour: its run's where each run has one, else its source's, set's or phase's."""
    is_run = num_runs > 1 and len(chart.metrics) == 1 and not chart.metrics[0].endswith("/*")
    return COLOURS[(curve.run if is_run else curve.entry) % len(COLOURS)]


class Canvas:
    """Makes the figures of a page: they share the steps that are shown, and the marks."""

    def __init__(self, marks: dict[str, Points], *, num_runs: int, last: float) -> None:
        try:
            import bokeh.models
            import bokeh.plotting
        except ModuleNotFoundError:
            raise PoroError("bokeh is not installed, which draws the report; pip install 'megatron_poro[report]'") from None
        self._models: Any = bokeh.models
        self._plotting: Any = bokeh.plotting
        self._num_runs = num_runs
        self._marks = {kind: self._source(points) for kind, points in marks.items()}
        self._range = self._models.Range1d(0, last, bounds=(0, last), min_interval=min(5, last), name="range")

    def figure(self, number: int, chart: Chart, curves: Sequence[Curve]) -> Any:
        """The figure of a chart. Curve c of it is the renderers `curve-NUMBER-c` and `mean-NUMBER-c`, the marks `mark-KIND`."""
        models = self._models
        figure = self._plotting.figure(
            name=f"chart-{number}",
            height=HEIGHTS[min(number, 1)],
            sizing_mode="stretch_width",
            x_range=self._range,
            y_range=models.Range1d(1, 2),
            y_axis_type="log" if chart.is_log else "linear",
            tools="",
            toolbar_location=None,
            output_backend="canvas",
            min_border_left=56,
            background_fill_alpha=0,
            border_fill_alpha=0,
            outline_line_color=None,
            min_border_right=18,
        )
        zoom = models.BoxZoomTool(dimensions="width")
        wheel = models.WheelZoomTool(dimensions="width", modifiers={"ctrl": True})
        figure.add_tools(
            zoom, models.PanTool(dimensions="width"), wheel, models.ResetTool(), models.CrosshairTool(dimensions="height")
        )
        figure.toolbar.active_drag, figure.toolbar.active_scroll = zoom, wheel
        for axis, numbers in ((figure.xaxis, "short"), (figure.yaxis, chart.numbers)):
            axis.formatter = models.CustomJSTickFormatter(code=f"return poroNumber(tick, {json.dumps(numbers)})")
        figure.yaxis.ticker.desired_num_ticks = 5
        figure.xaxis.ticker.desired_num_ticks = 5
        for kind, source in self._marks.items():
            figure.vspan(
                x="step", source=source, name=f"mark-{number}-{kind}", line_color=MARK_COLOURS[kind], line_width=1, line_alpha=0.5,
                line_dash="dashed" if kind == "mix" else "solid",
            )  # fmt: skip
        for place, curve in enumerate(curves):
            self._draw(figure, f"{number}-{place}", curve, chart=chart)
        return figure

    def _draw(self, figure: Any, name: str, curve: Curve, *, chart: Chart) -> None:
        look = {"color": colour_of(curve, chart, self._num_runs), "line_dash": self._dash(curve, chart)}
        source = self._source(curve.points)
        figure.line(
            "step", "value", source=source, name=f"curve-{name}", line_width=1 if curve.mean else 1.8,
            line_alpha=0.45 if curve.mean else 1.0, **look,
        )  # fmt: skip
        if curve.mean:
            figure.line("step", "value", source=self._source(curve.mean), name=f"mean-{name}", line_width=1.8, **look)
        if chart.has_points:
            figure.scatter("step", "value", source=source, name=f"points-{name}", size=5, color=look["color"])

    def _dash(self, curve: Curve, chart: Chart) -> str:
        """Where colours tell sources, dashes tell runs."""
        is_table = len(chart.metrics) > 1 or chart.metrics[0].endswith("/*")
        return DASHES[curve.run % len(DASHES)] if is_table else "solid"

    def _source(self, points: Points) -> Any:
        data = {"step": points.step, "tokens": points.tokens, "value": points.value}
        return self._models.ColumnDataSource(data=data)


def embed(figures: Sequence[Any]) -> str:
    """The figures as JSON, as bokeh's `embed_items` takes them: each goes to the element that has its name for an id."""
    from bokeh.document import Document

    document = Document()
    for figure in figures:
        document.add_root(figure)
    places = {figure.id: figure.name for figure in figures}
    item = {"docid": "report", "roots": places, "root_ids": list(places)}
    return json.dumps({"documents": {"report": document.to_json(deferred=False)}, "items": [item]})


def library() -> str:
    """bokeh's script, which comes with its package."""
    from bokeh.resources import Resources

    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)
