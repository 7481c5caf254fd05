"""SVG by hand: a schedule's timeline, scaling curves, predicted against measured. It needs no package, so login nodes have it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from megatron_poro.planning.scaling import Point
from megatron_poro.planning.schedule import Timeline

FORWARD, BACKWARD, IDLE = "#4477aa", "#ee8866", "#eeeeee"
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
"""Paul Tol's bright scheme, which colour-blind people can tell apart."""
WIDTH, ROW = 1200, 26
MOST_PASSES = 20_000


@dataclass(frozen=True)
class Dot:
    """A measured and a predicted value, and the group that gives its colour."""

    measured: float
    predicted: float
    group: str


def draw_timeline(timeline: Timeline, title: str) -> str:
    """A row per stage; forward passes blue, backward passes orange, later chunks lighter. The first passes of a very long step."""
    passes = timeline.passes[:MOST_PASSES]
    stages = 1 + max(each.stage for each in passes)
    chunks = 1 + max(each.chunk for each in passes)
    scale = (WIDTH - 90) / max(each.end for each in passes)
    parts = []
    for stage in range(stages):
        y = 40 + stage * ROW
        parts.append(f'<text x="4" y="{y + 16}">stage {stage}</text>')
        parts.append(f'<rect x="70" y="{y}" width="{WIDTH - 90}" height="{ROW - 6}" fill="{IDLE}"/>')
    for each in passes:
        colour = FORWARD if each.is_forward else BACKWARD
        x, width = 70 + each.start * scale, max((each.end - each.start) * scale, 0.2)
        opacity = 1 - 0.6 * each.chunk / chunks
        parts.append(
            f'<rect x="{x:.2f}" y="{40 + each.stage * ROW}" width="{width:.2f}" height="{ROW - 6}" fill="{colour}" '
            f'fill-opacity="{opacity:.2f}" stroke="white" stroke-width="0.3">'
            f"<title>microbatch {each.microbatch}, chunk {each.chunk}</title></rect>"
        )
    foot = f"{timeline.seconds:.2f} s; idle {timeline.bubble:.1%} of the busiest stage's time; blue forward, orange backward"
    height = 40 + stages * ROW + 30
    parts.append(f'<text x="70" y="{height - 10}">{escape(foot)}</text>')
    return _page(title, parts, height)


def draw_scaling(strong: Sequence[Point], weak: Sequence[Point], title: str) -> str:
    """Efficiency against devices, both kinds, and the shares that strong scaling loses, as bars."""
    points = [*strong, *weak]
    low, high = math.log2(min(each.devices for each in points)), math.log2(max(each.devices for each in points))
    left, top, width, height = 60, 50, WIDTH - 240, 340

    def place(devices: int, share: float) -> tuple[float, float]:
        return left + (math.log2(devices) - low) / max(high - low, 1e-9) * width, top + (1 - share) * height

    parts = [_axis(left, top, width, height)]
    for each in strong:
        x, _ = place(each.devices, 0)
        base = 0.0
        for colour, share in zip(COLOURS, each.losses.values(), strict=True):
            y = top + (1 - base - share) * height
            parts.append(
                f'<rect x="{x - 10:.1f}" y="{y:.1f}" width="20" height="{share * height:.1f}" fill="{colour}" fill-opacity="0.6"/>'
            )
            base += share
        parts.append(f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{each.devices}</text>')
    for name, line, dash in (("strong scaling", strong, ""), ("weak scaling", weak, "6 4")):
        corners = " ".join("{:.1f},{:.1f}".format(*place(each.devices, min(each.efficiency, 1.0))) for each in line)
        parts.append(
            f'<polyline points="{corners}" fill="none" stroke="black" stroke-width="2" stroke-dasharray="{dash}">'
            f"<title>{name}</title></polyline>"
        )
    legend = [*zip(COLOURS, (f"lost: {name}" for name in strong[0].losses), strict=True)]
    for place_, (colour, name) in enumerate([*legend, ("black", "line: strong scaling"), ("black", "dashed: weak scaling")]):
        y = top + 20 * place_
        parts.append(f'<rect x="{WIDTH - 165}" y="{y}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - 148}" y="{y + 11}">{escape(name)}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{top + height + 40}" text-anchor="middle">devices</text>')
    return _page(title, parts, top + height + 60)


def draw_scatter(panels: Sequence[tuple[str, Sequence[Dot]]], title: str) -> str:
    """Predicted against measured on logarithmic axes, a panel each, with the diagonal and lines at 10 % beside it."""
    parts: list[str] = []
    size, top = 420, 60
    for number, (name, dots) in enumerate(panels):
        parts += _panel(name, dots, left=70 + number * (size + 150), top=top, size=size)
    return _page(title, parts, top + size + 110)


def _panel(name: str, dots: Sequence[Dot], *, left: int, top: int, size: int) -> list[str]:
    values = [value for dot in dots for value in (dot.measured, dot.predicted)]
    low, high = math.log10(min(values)) - 0.1, math.log10(max(values)) + 0.1

    def at(value: float) -> float:
        return (math.log10(value) - low) / (high - low) * size

    parts = [f'<rect x="{left}" y="{top}" width="{size}" height="{size}" fill="none" stroke="#888"/>']
    for factor, dash in ((1.0, ""), (1.1, "4 4"), (1 / 1.1, "4 4")):
        start, end = 10**low * max(1, 1 / factor), 10**high / max(1, factor)
        parts.append(
            f'<line x1="{left + at(start):.1f}" y1="{top + size - at(start * factor):.1f}" x2="{left + at(end):.1f}" '
            f'y2="{top + size - at(end * factor):.1f}" stroke="#888" stroke-dasharray="{dash}"/>'
        )
    groups = sorted({dot.group for dot in dots})
    for dot in dots:
        colour = COLOURS[groups.index(dot.group) % len(COLOURS)]
        parts.append(
            f'<circle cx="{left + at(dot.measured):.1f}" cy="{top + size - at(dot.predicted):.1f}" r="4" fill="{colour}" '
            f'fill-opacity="0.6"/>'
        )
    for place, group in enumerate(groups):
        parts.append(
            f'<text x="{left + 10}" y="{top + 20 + 16 * place}" fill="{COLOURS[place % len(COLOURS)]}">{escape(group)}</text>'
        )
    for exponent in range(math.ceil(low), math.floor(high) + 1):
        parts.append(
            f'<text x="{left + at(10**exponent):.1f}" y="{top + size + 16}" text-anchor="middle">{10**exponent:g}</text>'
            f'<text x="{left - 6}" y="{top + size - at(10**exponent) + 4:.1f}" text-anchor="end">{10**exponent:g}</text>'
        )
    label = f'<text x="{left + size / 2}" y="{top + size + 36}" text-anchor="middle">'
    return [*parts, f"{label}measured {escape(name)}; predicted upwards, dashed: 10 % off</text>"]


def _axis(left: int, top: int, width: int, height: int) -> str:
    lines = [
        f'<line x1="{left}" y1="{top + (1 - share) * height:.1f}" x2="{left + width}" y2="{top + (1 - share) * height:.1f}" '
        f'stroke="#dddddd"/><text x="{left - 6}" y="{top + (1 - share) * height + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    return "".join(lines)


def _page(title: str, parts: Sequence[str], height: float) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" font-family="sans-serif" font-size="12">'
    back = f'<rect width="{WIDTH}" height="{height:.0f}" fill="white"/><text x="4" y="20" font-size="15">{escape(title)}</text>'
    return "\n".join([head, back, *parts, "</svg>", ""])
