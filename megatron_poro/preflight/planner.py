"""The seam to the planner: a run's memory and times. Until it is joined, what the run has measured, and a lower bound."""

from dataclasses import dataclass

from megatron_poro.preflight.case import Case, count_parameters

NO_PLANNER = "this release has no planner yet"


@dataclass(frozen=True)
class Forecast:
    """Of a run: memory of its fullest rank, time of a step and of a save. None is not known."""

    memory_bytes: float | None = None
    step_seconds: float | None = None
    save_seconds: float | None = None


def forecast(case: Case) -> Forecast:
    """What is known before the run starts. Measured times of this run win over any model."""
    steps = [record["seconds"] for record in case.records if record["event"] == "step" and "seconds" in record]
    saves = [record["seconds"] for record in case.records if record["event"] == "checkpoint" and "seconds" in record]
    middle = sorted(steps[-1000:])[len(steps[-1000:]) // 2] if steps else None
    return Forecast(step_seconds=middle, save_seconds=max(saves, default=None))


def least_memory(case: Case, data_ranks: int) -> float:
    """Bytes that no rank goes below: its weights, gradients and share of the optimizer, without activations.

    6 + 12 / data ranks for each parameter in bf16 (Megatron-LM, theoretical_memory_usage.py), 8 + 8 / data ranks in fp32.
    """
    parallel = case.config.parallel
    parameters = count_parameters(case.config.model) / (parallel.tensor * parallel.pipeline)
    shards = data_ranks * parallel.context
    is_bf16 = case.config.training.precision == "bf16"
    return parameters * (6 + 12 / shards if is_bf16 else 8 + 8 / shards)
