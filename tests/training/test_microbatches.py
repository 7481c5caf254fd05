"""What a step reads does not depend on the layout, the micro-batch or the length of the run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from megatron_poro.config import load_run
from megatron_poro.data import TrainingData
from megatron_poro.topology import Layout
from megatron_poro.training.microbatches import training_microbatches
from tests.runs import write_run, write_tokens


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_tokens(folder)
    return write_run(folder / "run.toml")


@pytest.fixture(scope="module")
def data(run_file: Path) -> Iterator[TrainingData]:
    data = TrainingData(load_run(run_file).data)
    yield data
    data.close()


@pytest.mark.parametrize("steps", [12, 1000])
@pytest.mark.parametrize(("num_ranks", "micro_batch"), [(1, 1), (1, 8), (2, 2), (4, 1), (8, 1)])
def test_the_ranks_of_every_layout_read_the_samples_of_the_step(
    run_file: Path, data: TrainingData, num_ranks: int, micro_batch: int, steps: int
) -> None:
    config = load_run(run_file, [f"training.micro_batch_size={micro_batch}", f"training.steps={steps}"])
    layout = Layout(tensor=1, pipeline=1, data=num_ranks)
    for first in (0, 56, 27):
        runs = [range(first, first + 3), range(first + 20, first + 25)]  # around a window that is left out
        rows = [
            row
            for rank in range(num_ranks)
            for microbatch, _, _ in training_microbatches(config, data, layout, runs=runs, data_rank=rank)
            for row in microbatch.tolist()
        ]
        wanted = np.concatenate([data.samples(run) for run in runs])
        assert np.array_equal(sorted(rows), sorted(wanted.tolist()))
