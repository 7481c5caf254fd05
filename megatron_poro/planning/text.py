"""A plan as text and as JSON; nothing is computed here."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

from megatron_poro.planning.calibration import SOURCES
from megatron_poro.planning.exact import ExactCounts
from megatron_poro.planning.memory import StageMemory
from megatron_poro.planning.plan import Plan
from megatron_poro.planning.scaling import WORTH, Point, pays_until
from megatron_poro.planning.search import Ranking, why_it_loses
from megatron_poro.planning.times import StepTime

TERMS = {
    "compute": "matrix products at the calibrated share of the peak, the rest at the memory's rate",
    "imbalance": "what the slowest stage (the last has the output layer) computes more than the mean",
    "tensor": "exchange of the tensor axis that no product hides",
    "context": "keys and values of the context axis that attention does not hide",
    "pipeline": "sending microbatches to the next stage",
    "bubble": "stages that wait, from the schedule as it is played",
    "data": "gradients and weights of the data axis that no pass hides",
    "update": "optimizer and gradient norm, bound by memory",
    "fixed": "what every step costs besides, calibrated",
}


MEMORY_TERMS = {
    "weights": "bf16, 2 bytes a parameter of the rank",
    "gradients": "fp32, 4 bytes",
    "optimizer": "master weight and two moments, 12 bytes, cut over data x context",
    "activations": "what the layers keep of one microbatch, times the chunks that the schedule has in flight",
    "logits": "bf16, and fp32 for the loss, 6 bytes a token and column",
    "buffers": "workspaces, the gathered input of a layer, boundaries that are received and sent",
    "margin": "8 % for fragmentation and 2 GB outside of the allocator",
}


def render(plan: Plan, *, explain: bool = False) -> str:
    """The plan in lines."""
    parts = [*_head(plan), "", *_memory(plan, explain), "", *_time(plan, explain), "", *_run(plan)]
    if explain:
        parts += ["", "sources", *(f"  {line}" for line in _sources(plan))]
    return "\n".join(parts)


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain data: bytes, seconds, days."""
    return {
        "layout": asdict(plan.job.layout),
        "micro_batch_size": plan.job.micro_batch_size,
        "global_batch_size": plan.job.global_batch_size,
        "nodes": plan.nodes,
        "cluster": plan.profile.name,
        "parameters": plan.parameters,
        "fits": plan.fits,
        "device_memory_bytes": plan.limit_bytes,
        "memory": [{**asdict(each), "margin": each.margin, "total": each.total} for each in plan.memory],
        "step_seconds": plan.time.seconds,
        "step_terms_seconds": asdict(plan.time),
        "tokens_per_second_per_device": plan.tokens_per_second,
        "model_tflops_per_device": asdict(plan.tflops),
        "mfu": asdict(plan.mfu),
        "flops_per_token": asdict(plan.flops),
        "steps": plan.num_steps,
        "tokens": plan.num_tokens,
        "step_days": plan.step_days,
        "days": plan.days,
        "bracket_days": list(plan.bracket_days),
        "elements": plan.elements,
        "checkpoint_bytes": plan.checkpoint_bytes,
        "endurance": {key: value if math.isfinite(value) else None for key, value in asdict(plan.endurance).items()},
        "save_every_steps": plan.save_every_steps,
        "checkpoints_kept": plan.kept,
        "disk_bytes": plan.disk_bytes,
        "gpu_hours": plan.gpu_hours,
        "cost": plan.gpu_hours * plan.price if plan.price else None,
    }


def render_ranking(ranking: Ranking, limit_bytes: float, most: int) -> str:
    """The search: the winner, and why the next ones lose."""
    winner = ranking.fitting[0]
    lines = [f"{len(ranking.fitting)} layouts fit, {ranking.num_too_large} do not; the fastest:"]
    for place, each in enumerate(ranking.fitting[:most], 1):
        why = "" if each is winner else f"  {why_it_loses(winner, each)}"
        lines.append(f"{place:3}. {each.time.seconds:7.2f} s {each.needs_bytes / 1e9:6.1f} GB  {each}{why}")
    large = ranking.too_large
    if large and large.time.seconds < winner.time.seconds:
        lines.append(
            f"  -  {large.time.seconds:7.2f} s {large.needs_bytes / 1e9:6.1f} GB  {large}  "
            f"faster, but does not fit {limit_bytes / 1e9:.1f} GB"
        )
    return "\n".join(lines)


def render_scaling(strong: Sequence[Point], weak: Sequence[Point], devices_per_node: int) -> str:
    """Both tables, and where more devices stop to pay."""
    lines = []
    for name, points in (("strong scaling: the batch stays", strong), ("weak scaling: the batch grows with the devices", weak)):
        lines.append(f"{name}\n devices nodes    DP microbatches   batch   s/step tokens/s/device efficiency  lost to")
        for each in points:
            layout, job = each.job.layout, each.job
            lost = ", ".join(f"{key} {share:.1%}" for key, share in each.losses.items() if share >= 0.005)
            lines.append(
                f"{each.devices:8}{-(-each.devices // devices_per_node):6}{layout.data:6}{job.num_microbatches:13}"
                f"{job.global_batch_size:8}{each.time.seconds:9.2f}{each.tokens_per_second / each.devices:16.1f}"
                f"{each.efficiency:11.1%}  {lost}"
            )
        lines.append("")
    last = pays_until(list(strong))
    lines.append(
        f"more than {last.devices} devices do not pay with this batch: the next doubling gains less than {WORTH:.0%} of its best"
        if last is not strong[-1]
        else f"up to {last.devices} devices every doubling pays: it gains at least {WORTH:.0%} of its best"
    )
    return "\n".join(lines)


def render_exact(counts: ExactCounts | str, plan: Plan) -> str:
    """The counts of the real model beside the formula's, or why there are none."""
    if isinstance(counts, str):
        return f"parameters by formula; not counted on the real model: {counts}"
    lines = ["counted on megatron-core's own model, built on the meta device in a fake process group"]
    for each in counts.ranks:
        by_formula = plan.memory[each.stage].parameters
        same = "as by formula" if each.parameters == by_formula else f"by formula {by_formula:,}"
        lines.append(
            f"  rank {each.rank:5}, stage {each.stage:2}: {each.parameters:,} parameters ({same}), "
            f"optimizer shard {each.optimizer_shard:,}"
        )
    lines.append(f"  all stages: {counts.parameters:,} parameters with padding, checkpoint {counts.checkpoint_bytes / 1e9:.1f} GB")
    return "\n".join(lines)


def _head(plan: Plan) -> Iterator[str]:
    job, layout = plan.job, plan.job.layout
    yield (
        f"{plan.parameters / 1e9:.2f}B parameters, {plan.num_tokens / 1e9:.1f}B tokens: {plan.num_steps:,} steps of "
        f"{job.global_batch_size} x {job.sequence_length}"
    )
    yield f"{plan.profile.name}: {plan.nodes} nodes, {layout.world_size} x {plan.profile.device}"
    yield (
        f"{layout}, micro-batch {job.micro_batch_size}, {job.num_microbatches} microbatches a step, "
        f"recompute {job.method.recompute}{', sequence parallel' if job.method.sequence_parallel else ''}"
    )


def _memory(plan: Plan, explain: bool) -> Iterator[str]:
    yield "memory of a rank at the peak of a step, GB"
    yield " stage  weights gradients optimizer activations (chunks) logits buffers margin   total"
    for each in plan.memory:
        yield (
            f"{each.stage:6}{_gb(each.weights, 9)}{_gb(each.gradients, 10)}{_gb(each.optimizer, 10)}{_gb(each.activations, 12)}"
            f"{f'({each.in_flight})':>9}{_gb(each.logits, 7)}{_gb(each.buffers, 8)}{_gb(each.margin, 7)}{_gb(each.total, 8)}"
        )
    if explain:
        yield from (f"  {name:12}{what}" for name, what in MEMORY_TERMS.items())
    if plan.limit_bytes:
        verdict = "fits" if plan.fits else "DOES NOT FIT"
        yield f"{verdict}: {plan.needs_bytes / 1e9:.1f} of {plan.limit_bytes / 1e9:.1f} GB on stage {_fullest(plan.memory)}"


def _time(plan: Plan, explain: bool) -> Iterator[str]:
    seconds = plan.time.seconds
    yield f"a step takes {seconds:.2f} s"
    for f in fields(StepTime):
        value = getattr(plan.time, f.name)
        if value or explain:
            yield f"  {f.name:10}{value:9.3f} s {value / seconds:6.1%}" + (f"  {TERMS[f.name]}" if explain else "")
    tflops, mfu = plan.tflops, plan.mfu
    yield (
        f"{plan.tokens_per_second:.1f} tokens/s a device; model TFLOP/s {tflops.causal:.1f} with causal attention (Megatron-LM "
        f"since March 2025), {tflops.full:.1f} with full"
    )
    yield (
        f"MFU {mfu.causal:.1%} causal, {mfu.full:.1%} full, of {plan.machine.peak_flops / 1e12:.1f} TFLOP/s; "
        "recomputation is not counted"
    )
    if plan.bracket_days:
        low, high = plan.bracket_days
        yield f"bracket at published rates of such devices: {low:.1f} to {high:.1f} days of steps"


def _run(plan: Plan) -> Iterator[str]:
    endurance = plan.endurance
    yield (
        f"{plan.step_days:.1f} days of steps, {plan.days:.1f} with saves, failures and restarts ({endurance.overhead:.1%} more); "
        "waiting in the queue is not counted"
    )
    if math.isfinite(endurance.mtbf_seconds):
        yield (
            f"  a failure every {endurance.mtbf_seconds / 3600:.1f} h; saves every {plan.save_every_steps} steps "
            f"({endurance.interval_seconds / 60:.0f} min; Young and Daly: {endurance.best_interval_seconds / 60:.0f} min)"
        )
    partition = plan.profile.find_partition(plan.profile.partition)
    if partition and 0 < partition.max_nodes < plan.nodes:
        yield f"  MORE NODES than the {partition.max_nodes} that partition {partition.name} allows"
    if plan.elements:
        yield f"  {plan.elements} elements of partition {plan.profile.partition}, with spare ones"
    yield (
        f"  checkpoint {plan.checkpoint_bytes / 1e9:.0f} GB, written in {endurance.save_seconds:.0f} s to {plan.file_system.name} "
        f"({plan.file_system.write_gbps:g} GB/s); it holds the training up {endurance.stall_seconds:.0f} s"
    )
    quota = plan.file_system.quota_tb
    over = f"; OVER the quota of {quota:g} TB" if quota and plan.disk_bytes > quota * 1e12 else ""
    yield f"  disk for {plan.kept} checkpoints: {plan.disk_bytes / 1e12:.1f} TB{over}"
    cost = f", cost {plan.gpu_hours * plan.price:,.0f} at {plan.price:g} an hour" if plan.price else ""
    yield f"  {plan.gpu_hours:,.0f} GPU-hours{cost}"


def _sources(plan: Plan) -> Iterator[str]:
    yield from plan.profile.hardware.sources if plan.profile.hardware else ()
    yield from SOURCES
    yield f"file system: {plan.file_system.why} ({plan.file_system.source})"


def _gb(value: float, width: int) -> str:
    return f"{value / 1e9:{width}.2f}"


def _fullest(memory: Sequence[StageMemory]) -> int:
    return max(memory, key=lambda each: each.total).stage
