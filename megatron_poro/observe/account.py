"""Goodput, as far as metrics.jsonl tells: what part of the time that the run's starts took went into steps that count."""

from megatron_poro.observe.jsonl import Record


class Account:
    """Takes every record of a run in turn, also those that a later start takes back."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, float]] = []
        self._num_starts = 0
        self._ended_seconds = 0.0
        self._began = self._last = 0.0

    def add(self, record: Record) -> None:
        """Take one record."""
        if record["event"] == "start":
            self._steps = [(step, seconds) for step, seconds in self._steps if step <= record["step"]]
            self._num_starts += "left_out" not in record
            self._ended_seconds += self._last - self._began
            self._began = self._last if "left_out" in record else (record.get("began") or record["time"])
        elif record["event"] == "step" and "seconds" in record:
            before = self._steps[-1] if self._steps else (0, 0.0)
            # With observe.log_every_steps the steps between two records are taken to be like the second.
            self._steps.append((record["step"], before[1] + (record["step"] - before[0]) * record["seconds"]))
        self._last = record["time"]

    def numbers(self) -> dict[str, float]:
        """`run/starts`, and `run/goodput`: seconds of the steps that count / seconds from each start to its last record."""
        allocated = self._ended_seconds + self._last - self._began
        productive = self._steps[-1][1] if self._steps else 0.0
        return {"run/starts": float(self._num_starts), **({"run/goodput": productive / allocated} if allocated > 0 else {})}
