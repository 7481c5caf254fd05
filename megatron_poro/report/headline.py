"""What stands at the top of the page: state, step, tokens, loss. One run gets cards, several get a table."""

import math
from collections.abc import Sequence

from megatron_poro.observe.words import format_seconds
from megatron_poro.report.figures import COLOURS
from megatron_poro.report.html import Html, join, table, tag
from megatron_poro.report.run import Run, state_of

RECENT = 50
"""Steps that the rate is the median of."""


def short(number: float) -> str:
    """1234567 as 1.23 M."""
    for power, unit in ((12, " T"), (9, " B"), (6, " M"), (3, " k")):
        if abs(number) >= 10**power:
            return f"{number / 10**power:.3g}{unit}" if abs(number) < 999.5 * 10**power else f"{number / 10**power:,.0f}{unit}"
    return f"{number:.3g}" if number % 1 else f"{number:.0f}"


def state_html(run: Run) -> Html:
    """The run's state in its colour."""
    state = state_of(run)
    kind = "good" if state in ("done", "running") else "bad" if state.startswith(("failed", "held")) else "unsure"
    return tag("span", state, class_=f"state {kind}", data_state=state)


def headline(runs: Sequence[Run]) -> Html:
    """The top of the page."""
    if len(runs) > 1:
        return join([tag("div", tag("h1", " · ".join(run.name for run in runs)), class_="head"), _compared(runs)])
    (run,) = runs
    title = tag("div", tag("h1", run.name), state_html(run), class_="head")
    return join([title, tag("div", *_cards(run), class_="cards")])


def _cards(run: Run) -> list[Html]:
    step, tokens = run.history.last_step, run.history.last_tokens
    num_steps, num_tokens = (run.duration.num_steps, run.duration.num_tokens) if run.duration else (0, 0)
    cards = [
        _card(
            "step", f"{step:,}", step, under=f"of {num_steps:,}" * bool(num_steps), share=step / num_steps if num_steps else None
        ),
        _card("tokens", short(tokens), tokens, under=f"of {short(num_tokens)}" * bool(num_tokens)),
        _card("training loss", f"{_last(run, 'train/loss'):.4f}", _last(run, "train/loss"), under="nats per token"),
    ]
    validation = {name: run.history[name].values[-1] for name in run.history.series if name.startswith("validation_loss/")}
    if validation:
        mean = math.fsum(validation.values()) / len(validation)
        cards.append(_card("validation loss", f"{mean:.4f}", mean, under=f"mean of {len(validation)} sets"))
    if seconds := _median(run, "time/step"):
        left = (num_steps - step) * seconds
        cards.append(
            _card(
                "time a step",
                format_seconds(seconds),
                seconds,
                under=f"{format_seconds(left)} to go" if left > 0 else "recent median",
            )
        )
    if rate := _median(run, "throughput/tokens_per_second"):
        cards.append(_card("tokens/s", short(rate), rate, under="recent median"))
    if not math.isnan(mfu := _last(run, "throughput/mfu")):
        cards.append(_card("MFU", f"{mfu:.1%}", mfu, under="last step"))
    restarts = max(len(run.history.starts) - 1, 0)
    return [*cards, _card("restarts", f"{restarts:,}", restarts, under="with rollbacks")]


def _card(name: str, shown: str, value: float, *, under: str, share: float | None = None) -> Html:
    bar = [] if share is None else [tag("div", tag("i", style=f"width:{min(share, 1):.1%}"), class_="bar")]
    return tag("div", tag("span", name), tag("b", shown, data_card=name, data_value=value), tag("span", under), *bar, class_="card")


def _compared(runs: Sequence[Run]) -> Html:
    rows = [
        [
            Html(tag("i", class_="dot", style=f"background:{COLOURS[number % len(COLOURS)]}") + tag("span", run.name)),
            state_html(run),
            f"{run.history.last_step:,}",
            short(run.history.last_tokens),
            f"{_last(run, 'train/loss'):.4f}",
            short(_median(run, "throughput/tokens_per_second")),
            f"{max(len(run.history.starts) - 1, 0):,}",
        ]
        for number, run in enumerate(runs)
    ]
    names = ["run", "state", "step", "tokens", "training loss", "tokens/s", "restarts"]
    return tag("div", table(names, rows, texts=2), class_="box", style="margin-top:14px")


def _last(run: Run, name: str) -> float:
    values = run.history[name].stored_values
    return values[-1] if values else math.nan


def _median(run: Run, name: str) -> float:
    values = sorted(run.history[name].stored_values[-RECENT:])
    return values[len(values) // 2] if values else 0.0
