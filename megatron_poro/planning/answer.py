"""The answer to `poro plan`: the plan of the layout that was said or found, and what else was asked about it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

from megatron_poro.config import RunConfig
from megatron_poro.errors import LayoutError
from megatron_poro.planning.exact import ExactCounts, count_exactly
from megatron_poro.planning.machine import machine_of
from megatron_poro.planning.plan import Plan, Wish, make_plan, nodes_for, stages_of
from megatron_poro.planning.request import Question, config_of, has_layout, job_on, placed, unplaced_job, write_run
from megatron_poro.planning.scaling import Point, parse_span, pays_until, strong_scaling, weak_scaling
from megatron_poro.planning.schedule import Timeline, simulate, slowed
from megatron_poro.planning.search import CONTEXTS, Ranking, rank_layouts, why_it_loses
from megatron_poro.planning.text import as_dict, render, render_exact, render_ranking, render_scaling
from megatron_poro.slurm.profile import load_profile


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line said besides the question."""

    cluster: str = "lumi"
    nodes: int | None = None
    search: bool = False
    context: bool = False
    failures: float | None = None
    price: float | None = None


@dataclass(frozen=True)
class Answer:
    """The plan, its run file's config, and the ranking where layouts were searched."""

    plan: Plan
    config: RunConfig
    ranking: Ranking | None


def question_of(run_file: Path | None, overrides: Sequence[str], *, model: str, tokens: str) -> Question:
    """The question; with --model the first override stands where the run file would."""
    words = list(overrides)
    if model and run_file is not None and "=" in run_file.name:
        words, run_file = [str(run_file), *words], None
    return Question(run_file, model, tokens, tuple(words))


def find(question: Question, options: Options) -> Answer:
    """Plan it. Raises ConfigError or LayoutError with what is wrong."""
    for name, value in (("--failures-per-1000-node-days", options.failures), ("--price", options.price)):
        if value is not None and not 0 <= value < inf:
            raise LayoutError(f"{name}: {value:g} is out of range; give 0 or more")
    config, profile = config_of(question), load_profile(options.cluster)
    nodes = nodes_for(config, profile, options.nodes)
    machine, world = machine_of(profile), nodes * profile.devices_per_node
    ranking = None
    if options.search or not has_layout(question):
        limit = profile.device_memory_gb * 2**30 or inf
        contexts = CONTEXTS if options.context else CONTEXTS[:1]
        ranking = rank_layouts(unplaced_job(config), machine, world, limit_bytes=limit, contexts=contexts)
    job = ranking.fitting[0].job if ranking else job_on(config, world)
    wish = Wish(nodes=nodes, failures=options.failures, price=options.price)
    return Answer(make_plan(config, job, profile, wish), placed(config, job), ranking)


def as_text(found: Answer, *, explain: bool, exact: bool, scale: str | None, show: int) -> str:
    """Everything that was asked, in lines."""
    plan = found.plan
    parts = [render_ranking(found.ranking, plan.limit_bytes, show)] if found.ranking else []
    parts.append(render(plan, explain=explain))
    if exact:
        parts.append(render_exact(_counts(found), plan))
    if scale:
        parts.append(render_scaling(*scaling(found, scale), plan.profile.devices_per_node))
    return "\n\n".join(parts)


def as_json(found: Answer, *, scale: str | None, exact: bool, show: int) -> dict[str, Any]:
    """The same as plain data."""
    result = as_dict(found.plan)
    if found.ranking:
        winner = found.ranking.fitting[0]
        result["ranking"] = [
            {
                "layout": asdict(each.job.layout),
                "micro_batch_size": each.job.micro_batch_size,
                "recompute": each.job.method.recompute,
                "step_seconds": each.time.seconds,
                "needs_bytes": each.needs_bytes,
                "why": "" if each is winner else why_it_loses(winner, each),
            }
            for each in found.ranking.fitting[:show]
        ]
        result["num_fitting"], result["num_too_large"] = len(found.ranking.fitting), found.ranking.num_too_large
    if exact:
        counts = _counts(found)
        result["exact"] = asdict(counts) if isinstance(counts, ExactCounts) else counts
    if scale:
        strong, weak = scaling(found, scale)
        result["strong_scaling"], result["weak_scaling"] = [_point(each) for each in strong], [_point(each) for each in weak]
        result["pays_until_devices"] = pays_until(strong).devices
    return result


def scaling(found: Answer, span: str | None) -> tuple[list[Point], list[Point]]:
    """Strong and weak scaling over a span of devices. Raises LayoutError for no span."""
    if span is None:
        raise LayoutError("--plot: of what? add --scale 64..4096")
    ends = parse_span(span)
    return strong_scaling(found.plan.job, found.plan.machine, ends), weak_scaling(found.plan.job, found.plan.machine, ends)


def timeline(found: Answer, straggler: str | None) -> tuple[Timeline, str]:
    """The schedule as it is played, and a title. Raises LayoutError for a straggler that is none."""
    job = found.plan.job
    stages, title = stages_of(job, found.plan.machine), str(job.layout)
    if straggler:
        stage, _, factor = straggler.partition(":")
        if not (stage.isdigit() and int(stage) < stages.count and factor.replace(".", "", 1).isdigit() and float(factor) > 0):
            raise LayoutError(f"--straggler: {straggler!r} is not STAGE:FACTOR, as 3:1.2, with a stage below {stages.count}")
        stages, title = slowed(stages, int(stage), float(factor)), f"{title}, stage {stage} slower by {factor}"
    return simulate(stages, job.num_microbatches), f"{title}, {job.num_microbatches} microbatches"


def write(found: Answer, path: Path) -> None:
    """Write the planned run file."""
    write_run(found.config, path)


def _counts(found: Answer) -> ExactCounts | str:
    return count_exactly(found.config, found.plan.job.layout)


def _point(point: Point) -> dict[str, Any]:
    return {
        "devices": point.devices,
        "data": point.job.layout.data,
        "global_batch_size": point.job.global_batch_size,
        "step_seconds": point.time.seconds,
        "tokens_per_second": point.tokens_per_second,
        "efficiency": point.efficiency,
        "losses": point.losses,
    }
