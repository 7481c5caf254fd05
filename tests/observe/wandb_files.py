"""Reads wandb's .wandb files, which wandb 0.31 itself reads in its Go part alone: LevelDB's log format around protobuf records."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER_BYTES = 7
BLOCK_BYTES = 32768
FIRST, MIDDLE = 2, 3


def read_wandb_file(path: Path) -> Iterator[Any]:
    """The records of a file, as far as it was written."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, message = HEADER_BYTES, b""
    while position + HEADER_BYTES <= len(content):
        if BLOCK_BYTES - position % BLOCK_BYTES < HEADER_BYTES:
            position += BLOCK_BYTES - position % BLOCK_BYTES
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        message += content[position + HEADER_BYTES : position + HEADER_BYTES + length]
        position += HEADER_BYTES + length
        if kind not in (FIRST, MIDDLE):
            yield wandb_internal_pb2.Record.FromString(message)
            message = b""


def steps_of(path: Path) -> list[int]:
    """The steps of a file's history."""
    return [record.history.step.num for record in read_wandb_file(path) if record.HasField("history")]
