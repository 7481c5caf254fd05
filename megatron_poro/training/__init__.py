"""The training run: start or resume, loop, validate, save. `run_training` is what `poro train` calls."""

from megatron_poro.training.start import run_training

__all__ = ["run_training"]
