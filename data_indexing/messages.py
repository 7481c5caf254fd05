"""Python objects over a socket, arrays without a copy: between this program's own processes only, for they are pickles."""

import pickle
import socket
import struct
from typing import Any

_COUNT = struct.Struct("<I")
_SIZE = struct.Struct("<Q")


def send(connection: socket.socket, value: Any) -> None:
    """Send one object; OSError where nobody listens."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts: list[bytes | memoryview] = [body, *(buffer.raw() for buffer in buffers)]
    sizes = b"".join(_SIZE.pack(len(part)) for part in parts)
    connection.sendall(_COUNT.pack(len(parts)) + sizes)
    for part in parts:
        connection.sendall(part)


def receive(connection: socket.socket) -> Any:
    """Wait for one object; EOFError where the other end closed, before or within it."""
    (count,) = _COUNT.unpack(_receive_bytes(connection, _COUNT.size))
    sizes = _receive_bytes(connection, _SIZE.size * count)
    body, *buffers = [_receive_bytes(connection, size) for (size,) in _SIZE.iter_unpack(sizes)]
    return pickle.loads(body, buffers=buffers)  # noqa: S301 -- made by `send` above


def _receive_bytes(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view, 0, socket.MSG_WAITALL)
        if count == 0:
            raise EOFError("the other end of the connection is closed")
        view = view[count:]
    return data
