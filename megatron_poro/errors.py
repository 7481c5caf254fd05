"""What a user did wrong, as exceptions the command line turns into one line and exit code 2.

A `PoroError` names the culprit (file, key, number) and the way out. A bug raises the builtin and keeps its traceback.
"""

from collections.abc import Sequence

from data_indexing.errors import DataError

USER_ERROR_CODE = 2
HANG_CODE = 70
"""A rank was silent for too long; every rank's stacks were written and the run ended (EX_SOFTWARE)."""
UNSAVED_CODE = 74
"""The run ended where it should, but its last checkpoint could not be written (EX_IOERR)."""
STOPPED_CODE = 75
"""A signal stopped the run and it was saved; the same command goes on (EX_TEMPFAIL)."""
WEIGHTS_CODE = 76
"""Copies of the model differ; nothing was saved after it was seen (EX_PROTOCOL)."""


class PoroError(Exception):
    """A mistake of the user's: the message is one line that names the culprit and the way out."""


class ConfigError(PoroError):
    """One or more problems of a run file; `problems` holds one line each, with the full key."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class LayoutError(PoroError):
    """The parallel layout fits neither the model nor the processes."""


class ConversionError(PoroError):
    """A checkpoint or Hugging Face directory that cannot be converted as it is."""


class CheckpointError(PoroError):
    """A training checkpoint that is missing, damaged, or does not belong to this run."""


class TrainingError(PoroError):
    """Training that cannot go on as it is."""


class WeightsError(TrainingError):
    """Copies of the model that must be equal bit for bit are not."""


class UnsavedError(PoroError):
    """A run that ended without its last checkpoint."""


class LaunchError(PoroError):
    """Processes that could not be started, or one of them that died."""


class WandbError(PoroError):
    """A wandb server that cannot be reached, or a run that has nothing for it."""


USER_ERRORS = (PoroError, DataError)
"""What the command line reports without a traceback."""
