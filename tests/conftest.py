"""How tests are shared out to the workers that `make test` starts."""

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
