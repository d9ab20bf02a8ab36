"""Asks a ZeroMQ ROUTER on a Unix socket one question, without a ZeroMQ library: ZMTP 3.0 (rfc.zeromq.org/spec/23), NULL
security, this side a DEALER. Owns one connection for the time of a question.
"""

from __future__ import annotations

import socket
import struct
import time

_GREETING_BYTES = 64
_GREETING = b"\xff" + bytes(8) + b"\x7f" + bytes((3, 0)) + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 1, 2, 4
LARGEST_BYTES = 256 << 20  # of one frame; a peer that says more is not ours


class ProtocolError(ConnectionError):
    """The peer does not speak ZMTP 3, or wants what this side has not."""


def ask(path: str, question: bytes, timeout_s: float) -> bytes:
    """The body (last frame) of the reply to `question` from the ROUTER at the Unix socket `path`.

    OSError: nobody is there, or it does not answer within timeout_s in all (TimeoutError). ProtocolError: it is not
    ZeroMQ's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        peer = _Peer(line, time.monotonic() + timeout_s)
        line.settimeout(timeout_s)
        line.connect(path)
        peer.send(_GREETING)
        theirs = peer.receive(_GREETING_BYTES)
        if theirs[0] != 0xFF or theirs[9] != 0x7F or theirs[10] < 3:
            raise ProtocolError("the peer does not speak ZMTP 3")
        if theirs[12:32].rstrip(b"\0") != b"NULL":
            raise ProtocolError(f"the peer wants the security mechanism {theirs[12:32]!r}")
        peer.send(_frame(_COMMAND, b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"))
        flags, body = peer.frame()
        if not flags & _COMMAND or not body.startswith(b"\x05READY"):
            raise ProtocolError("the peer refuses the handshake")
        peer.send(_frame(0, question))
        while True:
            flags, body = peer.frame()
            if not flags & (_COMMAND | _MORE):
                return body


def _frame(flags: int, body: bytes) -> bytes:
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | _LONG,)) + struct.pack(">Q", len(body)) + body


class _Peer:
    """A connected socket with one deadline for all that is sent and received."""

    def __init__(self, line, end: float):
        self._line = line
        self._end = end

    def _hurry(self) -> None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        self._line.settimeout(left)

    def send(self, data: bytes) -> None:
        self._hurry()
        self._line.sendall(data)

    def receive(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            self._hurry()
            part = self._line.recv(min(count - len(parts), 1 << 20))
            if not part:
                raise ProtocolError("the peer closed the connection")
            parts += part
        return bytes(parts)

    def frame(self):
        """(flags, body)."""
        flags = self.receive(1)[0]
        size = struct.unpack(">Q", self.receive(8))[0] if flags & _LONG else self.receive(1)[0]
        if size > LARGEST_BYTES:
            raise ProtocolError(f"the peer says that a frame has {size} bytes")
        return flags, self.receive(size)
