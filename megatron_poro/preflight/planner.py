"""A run's memory and times before it starts: what the run has measured, else what the planner says of such a cluster."""

from dataclasses import dataclass

from megatron_poro.planning.job import job_of
from megatron_poro.planning.plan import Wish, make_plan
from megatron_poro.preflight.case import Case, count_parameters
from megatron_poro.topology import Layout

NO_RATES = "the cluster's profile has no [hardware], which the planner goes by"


@dataclass(frozen=True)
class Forecast:
    """Of a run: memory of its fullest rank, time of a step and of a save. None is not known."""

    memory_bytes: float | None = None
    step_seconds: float | None = None
    save_seconds: float | None = None


def forecast(case: Case, layout: Layout | None) -> Forecast:
    """What is known before the run starts. Measured times of this run win over any model."""
    planned = _plan(case, layout)
    steps = [record["seconds"] for record in case.records if record["event"] == "step" and "seconds" in record]
    saves = [record["seconds"] for record in case.records if record["event"] == "checkpoint" and "seconds" in record]
    middle = sorted(steps[-1000:])[len(steps[-1000:]) // 2] if steps else None
    return Forecast(planned.memory_bytes, middle or planned.step_seconds, max(saves, default=planned.save_seconds))


def _plan(case: Case, layout: Layout | None) -> Forecast:
    profile = case.around.profile
    if layout is None or profile is None or profile.hardware is None:
        return Forecast()
    nodes = case.nodes or max(layout.world_size // max(profile.devices_per_node, 1), 1)
    plan = make_plan(case.config, job_of(case.config, layout), profile, Wish(nodes=nodes))
    return Forecast(plan.needs_bytes, plan.time.seconds, plan.checkpoint_bytes / (plan.file_system.write_gbps * 1e9))


def least_memory(case: Case, data_ranks: int) -> float:
    """Bytes that no rank goes below: its weights, gradients and share of the optimizer, without activations.

    6 + 12 / data ranks for each parameter in bf16 (Megatron-LM, theoretical_memory_usage.py), 8 + 8 / data ranks in fp32.
    """
    parallel = case.config.parallel
    parameters = count_parameters(case.config.model) / (parallel.tensor * parallel.pipeline)
    shards = data_ranks * parallel.context
    is_bf16 = case.config.training.precision == "bf16"
    return parameters * (6 + 12 / shards if is_bf16 else 8 + 8 / shards)
