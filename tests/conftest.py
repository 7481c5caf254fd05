"""How tests are shared out to the workers that `make test` starts."""

import contextlib
import os
from typing import Any

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file stays together, for its fixtures, and so do all that need a Slurm: there is one cluster, and its tests wait a lot."""
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    class Files(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "slurm" if nodeid.startswith("tests/slurm/") else str(super()._split_scope(nodeid))

    return Files(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Elements of arrays have a minute each: beside another worker's tests they go first, where that may be asked for."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0 if item.nodeid.startswith("tests/slurm/") else 10)
