"""A running server takes up what was promoted, or the promotion is undone.

Owns what becomes of a promotion that a server does not take up; telling the server is `deploy.serve.reload`'s. Called
by `promotion`.

A version that one server cannot load, others cannot either, nor this one after a restart; the version before is still
served everywhere. So the repository is made to say again what the servers do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from deploy.ensemble.served import ask_again
from deploy.errors import DeployError
from deploy.evidence import Judgement
from deploy.repository.find import read_manifest
from deploy.repository.layout import Version
from deploy.repository.promotion import Promoted, rollback
from deploy.serve.client import Client, Protocol, RequestFailed
from deploy.serve.reload import TakenUp, take_up
from deploy.serve.standing import no_server


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """Where a server listens (`host:port`), by which protocol, and how many seconds it gets to answer anew."""

    address: str
    protocol: Protocol = "grpc"
    seconds: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Whether the server took the version up, and after how many seconds.

    `undone` is the rollback where it did not; None where it did, and where nothing was promoted to go back to.
    """

    address: str
    judgement: Judgement
    seconds: float | None = None
    undone: Promoted | None = None


@contextmanager
def connected(server: ServerAddress) -> Iterator[Client]:
    """A client of a server that answers. Raises UnfinishedError if none does."""
    with Client(server.protocol, server.address, seconds=server.seconds) as client:
        try:
            client.server_version()
        except RequestFailed as error:
            raise no_server(server.address, server.protocol, error.said or error.found) from error
        yield client


def roll_out(client: Client, promoted: Promoted, *, seconds: float, undo: bool = True) -> Rollout:
    """Make the server answer with what was promoted; where it does not, go back to what was promoted before.

    Without `undo` the promotion stands whatever the server does, as that of a rollback should.
    """
    version = promoted.version
    try:
        taken_up = _take_up(client, version, seconds=seconds)
    except KeyboardInterrupt as interrupt:
        seen = f"{version} is promoted in {version.repository}; whether the server at {client.address} took it up was"
        raise KeyboardInterrupt(f"{seen} not seen to the end, and nothing was undone") from interrupt
    except DeployError as error:
        undone, left = _undo(client, promoted, seconds=seconds) if undo else (None, "")
        judgement = Judgement.no(f"{error.found}{left}")
        return Rollout(address=client.address, judgement=judgement, undone=undone)
    how = "told to load it" if taken_up.told else "which looks by itself"
    reason = f"the server at {client.address}, {how}, answers with {version} after {taken_up.seconds:.1f} s"
    judgement = Judgement.yes(reason)
    return Rollout(address=client.address, judgement=judgement, seconds=taken_up.seconds)


def _undo(client: Client, promoted: Promoted, *, seconds: float) -> tuple[Promoted | None, str]:
    """The rollback, if there was a version before, and what is to be said where the server does not go back to it."""
    version, before = promoted.version, promoted.before
    if before is None:
        return None, "; nothing was promoted before it, so there is nothing to go back to"
    if before == version.number:
        return None, "; it was promoted before too, so there is nothing to undo"
    try:
        undone = rollback(version.repository, version.name, leaving=version.number)
    except DeployError as error:
        return None, f"; THE PROMOTION COULD NOT BE UNDONE: {error.found}"
    # One that was loaded and answers wrongly is to go too; where the load had failed this changes nothing.
    try:
        _take_up(client, undone.version, seconds=seconds)
    except DeployError as error:
        return undone, f"; NOR DOES IT ANSWER AS BEFORE, look after it now: {error.found}"
    return undone, ""


def _take_up(client: Client, version: Version, *, seconds: float) -> TakenUp:
    """As `take_up`; an ensemble is asked with the images of its evidence, what keeps nothing to ask with not at all."""
    manifest = read_manifest(version)
    if manifest.format == "ensemble":
        return take_up(client, version, manifest, seconds=seconds, ask=partial(ask_again, version))
    if manifest.format in ("python", "vllm"):
        reason = "it is ready; its answers were not asked for"
        unasked = Judgement.yes(reason)
        return take_up(client, version, manifest, seconds=seconds, ask=lambda _: unasked)
    return take_up(client, version, manifest, seconds=seconds)
