"""HTTP/1.1 and gRPC requests as bytes: one request at a time on one connection that stays open.

Owns the two protocols as far as serving_overhead_client.py needs them, and no socket. Neither copies the request, so
that the client costs about the same whatever it asks: the gRPC of Python would take three times as much.
"""

import struct
from collections import deque
from typing import Protocol

Buffers = deque[memoryview]
"""What is still to be sent."""


class Wire(Protocol):
    """One connection's protocol."""

    outgoing: Buffers

    def begin(self) -> None:
        """Put the next request into `outgoing`."""

    def receive(self, data: bytes) -> bytes | None:
        """The answer's body once it is whole; may add to `outgoing`. Raises RuntimeError if the request failed."""


class Http1:
    """HTTP/1.1 with keep-alive. The request is whole: line, headers and body."""

    def __init__(self, request: memoryview, authority: str) -> None:
        self.outgoing: Buffers = deque()
        self._request = request
        self._got = bytearray()
        self._end: int | None = None

    def begin(self) -> None:
        """The whole request at once."""
        self.outgoing.append(self._request)

    def receive(self, data: bytes) -> bytes | None:
        """The body of a 200."""
        self._got += data
        if self._end is None:
            self._end = self._find_end()
        if self._end is None or len(self._got) < self._end:
            return None
        body = bytes(self._got[self._got.index(b"\r\n\r\n") + 4 :])
        self._got.clear()
        self._end = None
        return body

    def _find_end(self) -> int | None:
        header = self._got.find(b"\r\n\r\n")
        if header < 0:
            return None
        first, *lines = bytes(self._got[:header]).lower().split(b"\r\n")
        fields = dict(line.split(b":", 1) for line in lines)
        if first.split()[1] != b"200" or b"content-length" not in fields:
            raise RuntimeError(f"no answer of known length: {bytes(self._got[:500])!r}")
        return header + 4 + int(fields[b"content-length"])


_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_INITIAL_WINDOW, _MAX_FRAME = 4, 5
_LARGEST_WINDOW = (1 << 31) - 1
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_METHOD = b"/inference.GRPCInferenceService/ModelInfer"


class Grpc:
    """A unary gRPC call over HTTP/2 (RFC 9113): one stream after the other, within the windows that the server opens.

    The headers use no table that would change (RFC 7541), and those of the answer are not read: a call that failed is
    known by its missing message.
    """

    def __init__(self, request: memoryview, authority: str) -> None:
        self._body = memoryview(struct.pack(">BI", 0, len(request)) + request)
        self._headers = _header_block(authority.encode())
        self._stream = -1
        self._sent = len(self._body)
        self._initial, self._frame = 65_535, 16_384
        self._windows = {0: self._initial}
        self._got = bytearray()
        self._message = bytearray()
        settings = struct.pack(">HI", _INITIAL_WINDOW, _LARGEST_WINDOW)
        wider = struct.pack(">I", _LARGEST_WINDOW - 65_535)
        opening = _PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, wider)
        self.outgoing: Buffers = deque([memoryview(opening)])

    def begin(self) -> None:
        """The headers, and as much of the message as the server has room for."""
        self._stream += 2
        self._sent = 0
        self._windows = {0: self._windows[0], self._stream: self._initial}
        self.outgoing.append(memoryview(_frame(_HEADERS, _END_HEADERS, self._stream, self._headers)))
        self._pump()

    def receive(self, data: bytes) -> bytes | None:
        """The message, once the stream has ended."""
        self._got += data
        answer, place = None, 0
        while len(self._got) >= place + 9:
            length = int.from_bytes(self._got[place : place + 3], "big")
            if len(self._got) < place + 9 + length:
                break
            kind, flags, stream = struct.unpack_from(">BBI", self._got, place + 3)
            payload = bytes(self._got[place + 9 : place + 9 + length])
            place += 9 + length
            self._take(kind, flags, stream, payload)
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM and stream == self._stream:
                answer = self._answer()
        del self._got[:place]
        self._pump()
        return answer

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _DATA:
            self._message += payload
        elif kind == _WINDOW_UPDATE and stream in self._windows:
            self._windows[stream] += int.from_bytes(payload, "big")
        elif kind == _PING and not flags & _ACK:
            self.outgoing.append(memoryview(_frame(_PING, _ACK, 0, payload)))
        elif kind == _SETTINGS and not flags & _ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                self._set(name, value)
            self.outgoing.append(memoryview(_frame(_SETTINGS, _ACK, 0, b"")))
        elif kind in (_RST_STREAM, _GOAWAY):
            raise RuntimeError(f"the server ended the call: {payload!r}")

    def _set(self, name: int, value: int) -> None:
        if name == _MAX_FRAME:
            self._frame = value
        elif name == _INITIAL_WINDOW:
            if self._stream in self._windows:
                self._windows[self._stream] += value - self._initial
            self._initial = value

    def _answer(self) -> bytes:
        if len(self._message) < 5:
            raise RuntimeError("the call failed: an answer without a message")
        answer = bytes(self._message[5:])
        self._message.clear()
        return answer

    def _pump(self) -> None:
        """Put as much of the body into frames as the windows allow."""
        while self._sent < len(self._body):
            size = min(self._frame, len(self._body) - self._sent, *self._windows.values())
            if size <= 0:
                return
            chunk = self._body[self._sent : self._sent + size]
            self._sent += size
            self._windows = {stream: window - size for stream, window in self._windows.items()}
            last = _END_STREAM if self._sent == len(self._body) else 0
            self.outgoing.append(memoryview(_head(size, _DATA, last, self._stream)))
            self.outgoing.append(chunk)


def _header_block(authority: bytes) -> bytes:
    """The request's headers: indexed where the static table has them, else literal, never indexed."""

    def text(value: bytes) -> bytes:
        return bytes([len(value)]) + value

    post, http, path, host = b"\x83", b"\x86", b"\x04", b"\x01"
    content_type, te = b"\x0f\x10" + text(b"application/grpc"), b"\x00" + text(b"te") + text(b"trailers")
    return post + http + path + text(_METHOD) + host + text(authority) + content_type + te


def _head(length: int, kind: int, flags: int, stream: int) -> bytes:
    return length.to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _head(len(payload), kind, flags, stream) + payload
