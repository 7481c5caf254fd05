"""How tests are shared out to the workers that `make test` starts."""

import fcntl
import os
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def _alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test that is marked `alone` has the machine for itself: those of other workers wait for it, and it for theirs."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    common, is_alone = tmp_path_factory.getbasetemp().parent, request.node.get_closest_marker("alone")
    with open(common / "door", "w") as door, open(common / "room", "w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)  # held by one that waits for the room, so that nobody else enters meanwhile
        fcntl.flock(room, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield
