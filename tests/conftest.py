"""How tests are shared out to the workers that `make test` starts."""

from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)  # before the workers look at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays together, for its fixtures, and all that needs a Slurm does: there is one cluster, and its tests wait a lot."""
    folder = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(folder)
        item.add_marker(pytest.mark.xdist_group("slurm" if place.parts[0] == "slurm" else str(place)))
