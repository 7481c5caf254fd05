"""Where tests find the real data that is not part of the repository."""

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(path: str) -> Path:
    """A file or folder of the shared data; the test is skipped where it is missing."""
    found = Path(os.environ.get("PORO_SHARED_DATA", _DEFAULT)) / path
    if not found.exists():
        pytest.skip(f"shared data: {found} is missing; set PORO_SHARED_DATA")
    return found
