"""The three ports of a server: those that were asked for, and free ones for the others.

Owns looking whether a port is free. Called by server.
"""

import socket
from dataclasses import dataclass

from deploy.errors import UsageError

# Where this machine reaches a server that listens everywhere.
ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read here, chosen by the user


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedPorts:
    """The ports that were asked for; None is chosen free."""

    http: int | None = None
    grpc: int | None = None
    metrics: int | None = None

    @property
    def given(self) -> tuple[int, ...]:
        """Those that are not to be chosen."""
        return tuple(port for port in (self.http, self.grpc, self.metrics) if port is not None)

    @property
    def all_given(self) -> bool:
        """True where nothing is left to choose."""
        return len(self.given) == len(("http", "grpc", "metrics"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The three ports of a running server."""

    http: int
    grpc: int
    metrics: int


def check_ports(host: str, wanted: WantedPorts) -> None:
    """Raises UsageError if a port that was asked for is taken, forbidden, or asked for twice."""
    given = wanted.given
    if len(set(given)) < len(given):
        raise UsageError(f"the same port was given twice: {', '.join(map(str, given))}", expected="different ports")
    for port in given or (0,):
        try:
            _bind(host, port).close()
        except (OSError, OverflowError) as error:
            place = f"port {port} on {host}" if port else f"the address {host}"
            raise UsageError(
                f"{place} cannot be used: {error}",
                expected="a free port and an address of this machine",
                fix="choose another one, or leave the option out",
            ) from error


def choose_ports(host: str, wanted: WantedPorts) -> Ports:
    """The ports asked for, and free ones for the others, all held at once so that they differ.

    Another process may take a free one before the server does: whoever starts the server has to try again then.
    """
    held = [_bind(host, 0) for _ in range(3)]
    free = [bound.getsockname()[1] for bound in held]
    for bound in held:
        bound.close()
    return Ports(http=wanted.http or free[0], grpc=wanted.grpc or free[1], metrics=wanted.metrics or free[2])


def _bind(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # As the server does: a port in TIME_WAIT is free, one that is listened on is not.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound
