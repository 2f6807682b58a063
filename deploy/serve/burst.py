"""HTTP requests that are complete at a server at the same instant, so that its batcher has something to merge.

Owns the sockets and their timing; what the bytes mean belongs to `client`, its one caller.
"""

import http.client
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """A POST with a body of at least one byte."""

    path: str
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpResponse:
    """What came back; `header_length` is the part of the body that is JSON, None for all of it."""

    status: int
    body: bytes
    header_length: int | None


def send_at_once(address: str, requests: Sequence[HttpRequest], *, seconds: float) -> list[HttpResponse | OSError]:
    """The responses in order, each over a connection of its own; where one breaks, the error.

    Everything but the last byte of each request is sent first: the last bytes follow within microseconds, where a
    thread or a greenlet per request lets a fast server answer the first before the last is sent.
    """
    with ExitStack() as stack:
        prepared = [_prepare(stack, address, request, seconds) for request in requests]
        begun = [_attempt_last(connection, request) for connection, request in zip(prepared, requests, strict=True)]
        return [found if isinstance(found, OSError) else _receive(found) for found in begun]


def _prepare(
    stack: ExitStack, address: str, request: HttpRequest, seconds: float
) -> http.client.HTTPConnection | OSError:
    connection = stack.enter_context(closing(http.client.HTTPConnection(address, timeout=seconds)))
    try:
        connection.putrequest("POST", request.path)
        for name, value in {**request.headers, "Content-Length": str(len(request.body))}.items():
            connection.putheader(name, value)
        connection.endheaders(request.body[:-1])
    except OSError as error:
        return error
    return connection


def _attempt_last(
    connection: http.client.HTTPConnection | OSError, request: HttpRequest
) -> http.client.HTTPConnection | OSError:
    if isinstance(connection, OSError):
        return connection
    try:
        connection.send(request.body[-1:])
    except OSError as error:
        return error
    return connection


def _receive(connection: http.client.HTTPConnection) -> HttpResponse | OSError:
    try:
        response = connection.getresponse()
        body = response.read()
    except OSError as error:
        return error
    except http.client.HTTPException as error:
        return OSError(f"no HTTP answer: {error!r}")
    length = response.headers.get("Inference-Header-Content-Length")
    if length and not length.isdecimal():
        return OSError(f"no HTTP answer: Inference-Header-Content-Length is {length!r}")
    return HttpResponse(status=response.status, body=body, header_length=int(length) if length else None)
