"""Where tests find the real data that is not part of the repository."""

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(path: str) -> Path:
    """A file or folder of the shared data; where it is missing the test is skipped, or fails under PORO_REQUIRE_SHARED_DATA."""
    found = Path(os.environ.get("PORO_SHARED_DATA", _DEFAULT)) / path
    if not found.exists():
        assert "PORO_REQUIRE_SHARED_DATA" not in os.environ, f"{found} is missing"
        pytest.skip(f"shared data: {found} is missing; set PORO_SHARED_DATA")
    return found
