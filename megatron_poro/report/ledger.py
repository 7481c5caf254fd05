"""What a run has read of each source beside what its run file plans, at this point and in all."""

from dataclasses import dataclass
from typing import Any

from megatron_poro.config import RunConfig
from megatron_poro.config.duration import duration_of
from megatron_poro.data import LEFT_OUT, Windows, build_order, ledger_at, read_windows
from megatron_poro.report.run import Run


@dataclass(frozen=True)
class Line:
    """Tokens of a source: read so far (None: not written down), planned by the same step, and planned for the whole run."""

    name: str
    read: int | None
    planned_now: int
    planned: int


@dataclass(frozen=True)
class LedgerView:
    """The ledger at `step`, and who wrote down what was read."""

    step: int
    source: str
    lines: list[Line]

    @property
    def is_as_planned(self) -> bool:
        """Whether every source was read to the token as the run file plans."""
        return all(line.read == line.planned_now for line in self.lines)


def find_ledger(run: Run) -> LedgerView | None:
    """The ledger of a run; None where its config is not there."""
    if run.config is None:
        return None
    step, source, read = _newest(run)
    windows = read_windows(run.directory / LEFT_OUT)
    now, whole = (planned(run.config, steps, windows) for steps in (step, duration_of(run.config).num_steps))
    return LedgerView(step, source, [Line(name, read.get(name), now[name], whole[name]) for name in whole])


def planned(config: RunConfig, step: int, windows: Windows) -> dict[str, int]:
    """Tokens of each source in the first `step` steps, as the run file says, around the windows that a rollback leaves out."""
    num_sources = len(config.data.sources)
    order = build_order(config.data, [1] * num_sources, [""] * num_sources)  # sizes and contents decide which text, not how much
    position = windows.position_after(duration_of(config).samples_before(step))
    return {entry.name: entry.tokens for entry in ledger_at(order, position, windows=windows).sources}


def _newest(run: Run) -> tuple[int, str, dict[str, int]]:
    """The newest step at which the tokens of each source were written down, by whom, and how many they are."""
    by_source = {name: series for name, series in run.history.series.items() if name.startswith("tokens_by_source/")}
    if by_source:
        read = {name.partition("/")[2]: int(series.values[-1]) for name, series in by_source.items()}
        return run.history.last_step, "metrics.jsonl", read
    saved = [record for record in run.history.others if record["event"] == "checkpoint" and "ledger" in record]
    if not saved:
        return run.history.last_step, "", {}
    return saved[-1]["step"], f"checkpoint of step {saved[-1]['step']:,}", _read(saved[-1]["ledger"])


def _read(ledger: Any) -> dict[str, int]:
    try:
        return {str(entry["name"]): int(entry["tokens"]) for entry in ledger["sources"]}
    except (KeyError, TypeError, ValueError):
        return {}
