"""Jobs that several tests plan."""

from dataclasses import replace

from megatron_poro.config import ModelConfig, shapes
from megatron_poro.planning.job import Job, Method, Shape, shape_of
from megatron_poro.planning.machine import Machine, machine_of
from megatron_poro.slurm.profile import load_profile
from megatron_poro.topology import Layout


def llama(name: str = "llama3.1-70b") -> Shape:
    return shape_of(ModelConfig(**shapes()[name]))


def job(layout: Layout | None = None, *, shape: str = "llama3.1-70b", recompute: str = "none", batch: int = 512, **changes) -> Job:
    """Poro 2's 70B on 128 nodes of LUMI, unless told otherwise."""
    layout = layout or Layout(8, 8, 16)
    made = Job(
        shape=llama(shape),
        layout=layout,
        sequence_length=8192,
        micro_batch_size=1,
        global_batch_size=batch,
        method=Method(sequence_parallel=layout.tensor > 1, recompute=recompute),
    )
    return replace(made, **changes)


def machine(name: str = "lumi") -> Machine:
    return machine_of(load_profile(name))
