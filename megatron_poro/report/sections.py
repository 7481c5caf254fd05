"""What stands below the curves: goodput, ledger, chain of proofs, restarts, every metric, config, versions."""

from collections.abc import Callable
from datetime import UTC, datetime

import tomli_w

from megatron_poro.config.parse import to_plain
from megatron_poro.errors import PoroError
from megatron_poro.observe.catalog import METRICS
from megatron_poro.observe.words import format_seconds
from megatron_poro.report.goodput import Goodput, account
from megatron_poro.report.html import Html, join, table, tag
from megatron_poro.report.ledger import find_ledger
from megatron_poro.report.proofs import Link, find_chain
from megatron_poro.report.run import Run, marks_of

PARTS = ("#64748b", "#94a3b8", "#0891b2", "#0f9d76", "#d9730d", "#9059e0", "#cf3f8f", "#d64545", "#76901a")
"""Colours of the parts of goodput, in their order: waiting is grey, what counts green."""
KINDS = {"good": "verified", "unread": "not read", "missing": "missing", "bad": "wrong"}


def sections(run: Run, *, read_bytes: float) -> Html:
    """All of them, each under its heading; one that cannot be made says why."""
    parts: list[tuple[str, Callable[[], Html]]] = [
        ("Goodput", lambda: show_goodput(account(run.directory))),
        ("Ledger against plan", lambda: _ledger(run)),
        ("Chain of proofs", lambda: _chain(run, read_bytes)),
        ("Restarts, rollbacks, skipped steps", lambda: _happenings(run)),
        ("Every metric", lambda: _metrics(run)),
        ("Config", lambda: _config(run)),
        ("Versions", lambda: _versions(run)),
    ]
    return join(join([tag("h2", name), tag("div", _or_why_not(make), class_="box")]) for name, make in parts)


def show_goodput(goodput: Goodput) -> Html:
    """Where the time went, as a bar and a table."""
    total = goodput.wall_seconds
    if not total:
        return _note("nothing is known yet of where the time went")
    colours = dict(zip(goodput.seconds, PARTS, strict=True))
    bar = [
        tag("i", style=f"flex:{seconds:.3f};background:{colours[name]}", title=f"{name} {seconds / total:.1%}")
        for name, seconds in goodput.seconds.items()
        if seconds
    ]
    rows = [
        [
            Html(tag("i", class_="dot", style=f"background:{colours[name]}") + tag("span", name)),
            format_seconds(seconds),
            f"{seconds / total:.1%}",
            f"{goodput.gpu_hours[name]:,.2f}",
        ]
        for name, seconds in goodput.seconds.items()
    ]
    hours = sum(goodput.gpu_hours.values())
    text = (
        f"{format_seconds(goodput.wall_seconds)}, {hours:,.2f} GPU-hours, of which {goodput.share:.1%} went into steps that count."
    )
    return join([tag("p", text), tag("div", *bar, class_="parts"), table(["", "time", "share", "GPU-hours"], rows)])


def _or_why_not(make: Callable[[], Html]) -> Html:
    try:
        return make()
    except PoroError as error:
        return _note(str(error))


def _note(text: str) -> Html:
    return tag("p", text, class_="faint")


def _ledger(run: Run) -> Html:
    view = find_ledger(run)
    if view is None:
        return _note(run.problem)
    read, now = sum(line.read or 0 for line in view.lines), sum(line.planned_now for line in view.lines)
    planned = sum(line.planned for line in view.lines)
    rows = [
        [
            line.name,
            "?" if line.read is None else f"{line.read:,}",
            f"{(line.read or 0) / max(read, 1):.2%}",
            f"{line.planned_now:,}",
            f"{line.planned:,}",
            f"{line.planned / max(planned, 1):.2%}",
            f"{(line.read or 0) / max(line.planned, 1):.1%}",
        ]
        for line in view.lines
    ]
    rows.append(["total", f"{read:,}", "", f"{now:,}", f"{planned:,}", "", f"{read / max(planned, 1):.1%}"])
    names = ["source", "tokens read", "share", "planned by now", "planned in all", "share", "done"]
    where = f"At step {view.step:,}, by {view.source}. " if view.source else "Nothing was written down yet of what was read. "
    verdict = "Every source was read as planned, to the token." if view.is_as_planned else "What was read is not what is planned."
    return join([tag("p", where + (verdict if view.source else "")), table(names, rows)])


def _chain(run: Run, read_bytes: float) -> Html:
    chain = find_chain(run, read_bytes)
    rows = [_row("token files", link) for link in chain.tokens]
    rows += [_row("initial weights", link) for link in chain.initial]
    rows += [_row("checkpoint", link) for link in chain.checkpoints]
    if not run.config:
        rows.append(["token files", "", tag("span", KINDS["missing"], class_="missing"), run.problem])
    if not chain.checkpoints:
        rows.append(["checkpoint", "", tag("span", KINDS["missing"], class_="missing"), "no checkpoint lies in the run directory"])
    return table(["", "", "", "what was found"], rows, texts=4)


def _row(what: str, link: Link) -> list[str]:
    return [what, link.what, tag("span", KINDS[link.kind], class_=link.kind), link.text]


def _happenings(run: Run) -> Html:
    marks = [mark for mark in marks_of(run) if mark.kind != "mix"]
    if not marks:
        return _note("none")
    rows = [[f"{mark.step:,}", mark.kind, _time(mark.time), mark.why] for mark in marks]
    return table(["step", "what", "when (UTC)", "why"], rows, texts=4)


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _metrics(run: Run) -> Html:
    rows = []
    for metric in METRICS:
        for name in _names(run, metric.name):
            series = run.history[name]
            value = series.stored_values[-1]
            shown = tag("span", f"{value:.6g}", data_metric=name, data_value=repr(value))
            rows.append([name, metric.unit, metric.meaning, f"{series.stored_steps[-1]:,}", shown])
    content = table(["metric", "unit", "what it is", "last step", "value"], rows, texts=3)
    return tag("details", tag("summary", f"{len(rows)} metrics, their last values"), content)


def _names(run: Run, pattern: str) -> list[str]:
    """The metrics of a run that a name of the catalog stands for; `time/step` is its own, not one of `time/*`."""
    own = {metric.name for metric in METRICS}
    if not pattern.endswith("/*"):
        return [pattern] if pattern in run.history.series else []
    return [name for name in run.history.series if name.startswith(pattern[:-1]) and name not in own]


def _config(run: Run) -> Html:
    if run.config is None:
        return _note(run.problem)
    return tag("details", tag("summary", "config.toml, every value"), tag("pre", tomli_w.dumps(to_plain(run.config))))


def _versions(run: Run) -> Html:
    """Of every start, where they changed."""
    rows: list[list[str]] = []
    for start in run.history.starts:
        found = start.record.get("versions")
        versions = found if isinstance(found, dict) else {}
        device = str(start.record.get("device", ""))
        row = [", ".join(f"{name} {version}" for name, version in versions.items()), str(start.record.get("layout", "")), device]
        if not rows or rows[-1][1:] != row:
            rows.append([f"{start.step:,}", *row])
    return table(["from step", "versions", "layout", "device"], rows, texts=4) if rows else _note("no start was written down")
