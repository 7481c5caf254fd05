"""What a run says on its way: a full disk behind standard output, or a reader that went, must not end it."""

import contextlib
import sys
from collections.abc import Iterable
from typing import Any, TextIO


class _Lenient:
    """A text stream whose writes may fail; what could not be written is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, if that can be."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line, if that can be."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, if that can be."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def keep_talking() -> None:
    """Let no print of this process fail for its disk or its reader."""
    sys.stdout, sys.stderr = _Lenient(sys.stdout), _Lenient(sys.stderr)
