import os
import shutil
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Slurm

_MISSING = "slurmctld is missing: apt-get install -y --no-install-recommends slurm-wlm munge"


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A real Slurm of four nodes for this session; without slurmctld the test is skipped, or fails under PORO_REQUIRE_SLURM."""
    if not shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
        assert "PORO_REQUIRE_SLURM" not in os.environ, _MISSING
        pytest.skip(_MISSING)
    cluster = Slurm(4)
    yield cluster
    cluster.close()
