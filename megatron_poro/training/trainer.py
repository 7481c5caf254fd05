"""What one rank holds while it trains, and the record it keeps of it."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from megatron_poro import __version__
from megatron_poro.config import RunConfig
from megatron_poro.config.duration import Duration
from megatron_poro.data import Ledger, TrainingData, Windows, ledger_at
from megatron_poro.engine.phases import Phase, enter
from megatron_poro.engine.saving import CheckpointSaver
from megatron_poro.observe import SinkGroup
from megatron_poro.topology import Layout
from megatron_poro.training.compare import RankComparison
from megatron_poro.training.measures import StepMeasures
from megatron_poro.training.monitor import StepMonitor
from megatron_poro.training.signals import Requests
from megatron_poro.training.state import TrainState


@dataclass
class Trainer:
    """What one rank holds while it trains. `windows` are the samples that the run leaves out, `source` where its weights began."""

    config: RunConfig
    duration: Duration
    layout: Layout
    data: TrainingData
    chunks: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    sinks: SinkGroup
    is_first: bool
    data_rank: int
    saver: CheckpointSaver
    requests: Requests
    monitor: StepMonitor
    comparison: RankComparison
    measures: StepMeasures
    state: TrainState = TrainState()
    windows: Windows = Windows()
    source: dict[str, Any] = field(default_factory=dict)
    last_saved: int = -1

    @property
    def run_directory(self) -> Path:
        """Where everything of the run lies."""
        return Path(self.config.run_directory)

    def write(self, event: str, **values: Any) -> None:
        """Write a record of the present step to every sink."""
        self.sinks.write({"event": event, "step": self.state.step, "time": time.time(), **values})

    def write_start(self, origin: str, **values: Any) -> None:
        """Write that the run goes on from `origin` at the present step; records of later steps count no more."""
        told = {"origin": origin, "layout": str(self.layout), "versions": versions(), **self.measures.describe(), **values}
        self.write("start", **told)

    def ledger(self) -> Ledger:
        """What the run has read up to now."""
        return ledger_at(self.data.order, self.state.samples, windows=self.windows)

    def save(self) -> None:
        """Begin a checkpoint of the present step. Every rank must call it.

        Raises WeightsError, and saves nothing, when copies of the weights differ.
        """
        self.comparison.before_save(self.state.step)
        enter(Phase.SAVING)
        state = {
            **asdict(self.state),
            "ledger": self.ledger().as_dict(),
            "left_out": self.windows.as_list(),
            "monitor": self.monitor.as_dict(),
            "data": self.data.fingerprint(),
            "layout": str(self.layout),
            "versions": versions(),
        }
        self.last_saved = self.state.step
        self.saver.start(self.state.step, source=self.source, state=state)


def versions() -> dict[str, str]:
    """Versions of what computed the weights."""
    from megatron.core import __version__ as megatron_version

    return {"megatron_poro": __version__, "megatron_core": megatron_version, "torch": torch.__version__}
