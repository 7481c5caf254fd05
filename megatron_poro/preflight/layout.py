"""Ranks, nodes and memory: does the layout fit the processes, the nodes and the devices?"""

from collections.abc import Iterator

from megatron_poro.errors import USER_ERRORS
from megatron_poro.preflight.case import Case
from megatron_poro.preflight.findings import Finding, green, not_checked, red, yellow
from megatron_poro.preflight.planner import NO_RATES, forecast, least_memory
from megatron_poro.topology import Layout
from megatron_poro.training.start import layout_of, local_layout

MOST_BUBBLE = 0.2
"""Share of a step in which a stage waits, beyond which more microbatches are worth asking for."""
NO_SIZE = "how many processes? give --nodes and --cluster, or a job script"


def layout_on(case: Case) -> Layout | None:
    """The layout on the ranks that the run will have; None where nobody says how many, or they do not fit."""
    profile = case.around.profile
    if case.world_size is None and (profile is None or profile.scheduler == "none"):
        return local_layout(case.config)
    try:
        return layout_of(case.config, case.world_size) if case.world_size else None
    except USER_ERRORS:
        return None


def check_processes(case: Case) -> Iterator[Finding]:
    """Tensor x pipeline x context divides the ranks; every batch divides over data ranks, micro-batches and stages."""
    if layout := layout_on(case):
        yield green("layout.processes", f"{layout.world_size} ranks: {layout}")
    elif case.world_size is None:
        yield not_checked("layout.processes", NO_SIZE)
    else:
        try:
            layout_of(case.config, case.world_size)
        except USER_ERRORS as error:
            yield from (red("layout.processes", line) for line in str(error).splitlines())


def check_nodes(case: Case) -> Iterator[Finding]:
    """A tensor group talks at every layer: it stays inside a node."""
    tensor, devices = case.config.parallel.tensor, case.tasks_per_node
    if devices and tensor > devices:
        yield yellow(
            "layout.nodes",
            f"parallel.tensor ({tensor}) spans nodes of {devices} devices: every layer waits for the network; take at most "
            f"{devices}",
        )
    elif devices and devices % tensor:
        yield yellow(
            "layout.nodes",
            f"parallel.tensor ({tensor}) does not divide the {devices} devices of a node: some groups span two nodes",
        )
    elif devices:
        yield green("layout.nodes", f"parallel.tensor ({tensor}) stays within {devices} devices of a node")


def check_bubble(case: Case) -> Iterator[Finding]:
    """(stages - 1) of (microbatches + stages - 1) parts of a step are spent waiting in 1F1B; virtual stages divide it."""
    parallel, layout = case.config.parallel, layout_on(case)
    if layout is None or parallel.pipeline == 1:
        return
    training = case.config.training
    microbatches = training.global_batch_size // (training.micro_batch_size * layout.data)
    waiting = (parallel.pipeline - 1) / parallel.virtual_stages
    bubble = waiting / (microbatches + waiting)
    text = f"{microbatches} microbatches for parallel.pipeline ({parallel.pipeline}): stages wait {bubble:.0%} of a step"
    if bubble > MOST_BUBBLE:
        yield yellow(
            "layout.bubble", f"{text}, above {MOST_BUBBLE:.0%}; fewer data ranks, a larger batch or parallel.virtual_stages"
        )
    else:
        yield green("layout.bubble", text)


def check_memory(case: Case) -> Iterator[Finding]:
    """The planner's memory of the fullest rank, or at least what no rank goes below."""
    profile, layout = case.around.profile, layout_on(case)
    limit = profile.device_memory_gb if profile else 0.0
    if not limit or layout is None:
        device = f"cluster {profile.name} does not say (device_memory_gb)" if profile else "give --cluster"
        yield not_checked("layout.memory", NO_SIZE if layout is None else f"how much memory a device has: {device}")
        return
    planned, least = forecast(case, layout).memory_bytes, least_memory(case, layout.data)
    needed = (planned or least) / 2**30  # as vendors count the memory of devices
    what = "a rank needs" if planned else "weights, gradients and optimizer of a rank alone take"
    text = f"{what} {needed:.1f} GB of the {limit:g} GB of a {profile.device if profile else 'device'}"
    if needed > limit:
        yield red("layout.memory", f"{text}; raise parallel.tensor or parallel.pipeline, or take more nodes")
    elif planned:
        yield green("layout.memory", text)
    else:
        yield not_checked("layout.memory", f"activations, for {NO_RATES}; {text}")
