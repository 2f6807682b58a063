"""What stands at an address that gives no answer of KServe: encryption, a login, another protocol, or nothing.

Owns a few looks at the address itself, once nobody answered there, and the words for what they show. Called by slo and
release, which ask servers that they did not start.
"""

import socket
import ssl
import time
from contextlib import suppress

from deploy.errors import UnfinishedError
from deploy.serve.client import Protocol

_SECONDS = 2.0
_ENOUGH = 64
_REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED", "HTTP 401", "HTTP 403", "HTTP 407")
_WAY_IN = (
    "requests carry no credentials and are not encrypted: ask the server itself, behind what guards it, from within "
    "its network or over a forwarded port (`kubectl port-forward`)"
)


def no_server(address: str, protocol: Protocol, said: str) -> UnfinishedError:
    """The error for `host:port` where no request got an answer: what was `said`, and what seems to stand there."""
    found = f"no server answers at {address} over {protocol}: {said}"
    if refuses(said):
        return UnfinishedError(
            f"what answers at {address} over {protocol} wants to know who asks: {said}",
            expected="a server of KServe v2 that answers whoever reaches it, such as Triton",
            fix=_WAY_IN,
        )
    if (certificate := _certificate(address)) is not None:
        return UnfinishedError(
            f"{found}; what listens there speaks TLS{certificate}",
            expected="a server that is asked without encryption",
            fix=_WAY_IN,
        )
    status, other = _http_status(address), "http" if protocol == "grpc" else "grpc"
    if status in (401, 403, 407) or 300 <= status < 400:
        return UnfinishedError(
            f"{found}; asked by HTTP, what listens there says {status}: it wants to know who asks",
            expected="a server of KServe v2 that answers whoever reaches it, such as Triton",
            fix=_WAY_IN,
        )
    hint = f"; asked by HTTP, what listens there says {status}" if status >= 400 else ""
    return UnfinishedError(
        f"{found}{hint}",
        expected="a server that is ready, at the port of this protocol",
        fix=f"check --url, or try --protocol {other}",
    )


def refuses(said: str) -> bool:
    """Whether words about a request say that whoever asks is not let in."""
    return any(words in said for words in _REFUSED)


def _certificate(address: str) -> str | None:
    """How the certificate at an address is called in words, if it speaks TLS; None if not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is sent, and nothing that is said is believed: the look is for whether there is encryption.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    with suppress(OSError, ValueError), _connection(address) as plain, context.wrap_socket(plain) as encrypted:
        return f" ({encrypted.version()})"
    return None


def _http_status(address: str) -> int:
    """The status that HTTP's simplest question gets; 0 where nothing like HTTP comes back in time."""
    question = f"GET /v2/health/ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    said, until = b"", time.monotonic() + _SECONDS
    with suppress(OSError, ValueError), _connection(address) as plain:
        plain.sendall(question.encode())
        while len(said) < _ENOUGH and time.monotonic() < until and (more := plain.recv(_ENOUGH)):
            said += more
    words = said.split(maxsplit=2)
    told = len(words) > 1 and words[0].startswith(b"HTTP/") and words[1].isdigit()
    return int(words[1]) if told else 0


def _connection(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS)
