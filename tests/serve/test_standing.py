"""What is said of an address that gives no answer of KServe: each kind of guard, by its own words and way out."""

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from deploy.errors import UnfinishedError
from deploy.release.rollout import ServerAddress, connected
from deploy.serve.client import Protocol
from deploy.slo.counters import ServerTalk

Handle = Callable[[socket.socket], None]


@contextmanager
def listening(handle: Handle) -> Iterator[str]:
    """The address of a listener on loopback whose every connection goes to `handle`, in a thread of its own."""

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            handle(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=one, args=(server.accept()[0],), daemon=True).start()

    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def says(answer: bytes) -> Handle:
    """Answers each connection's first words so."""

    def handle(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    return handle


def http(status: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: 7\r\n\r\nSign in".encode()


def trickles(connection: socket.socket) -> None:
    """A byte now and then, and never an end."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.5)


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "302 Found"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_login_is_named(protocol: Protocol, status: str) -> None:
    with (
        listening(says(http(status))) as address,
        ServerTalk(address, protocol) as talk,
        pytest.raises(UnfinishedError, match=r"wants to know who asks[\s\S]*port-forward") as told,
    ):
        talk.metadata("law", "")
    assert status[:3] in str(told.value)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_encryption_is_named(tmp_path: Path, protocol: Protocol) -> None:
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -keyout key -out certificate"
    )
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")

    def encrypted(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as inside:
            inside.recv(100)

    with listening(encrypted) as address, ServerTalk(address, protocol) as talk:
        with pytest.raises(UnfinishedError, match=r"speaks TLS \(TLSv1"):
            talk.metadata("law", "")
        server = ServerAddress(address=address, protocol=protocol, seconds=5)
        with pytest.raises(UnfinishedError, match=r"speaks TLS[\s\S]*port-forward"), connected(server):
            pass


def test_an_answer_without_an_end_ends_in_time() -> None:
    began = time.monotonic()
    with (
        listening(trickles) as address,
        ServerTalk(address, "http") as talk,
        pytest.raises(UnfinishedError, match="not answered to the end within 5 s"),
    ):
        talk.metadata("law", "")
    assert time.monotonic() - began < 12
