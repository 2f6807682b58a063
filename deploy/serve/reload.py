"""A running server takes up another version: told to where it can be told, waited for where it looks by itself.

Owns the load call and the wait; which version is promoted is the repository's. Called by promotion with `--url`, and by
whoever swaps versions under load.

In explicit mode Triton loads the new version beside the old one, sends requests to it once it is ready, and lets the
old one end its own; a load that fails leaves the old one as it was. In poll mode the same happens at the next poll.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from deploy.errors import UnfinishedError
from deploy.evidence import Judgement
from deploy.repository.layout import Version
from deploy.repository.manifest import Manifest
from deploy.serve.asking import Asking
from deploy.serve.client import Client, ModelAddress, RequestFailed

Ask = Callable[[Client], Judgement]
"""Asks a server and judges its answers."""

# What Triton says in the modes in which it takes no load call.
_NOT_EXPLICIT = ("polling is enabled", "explicit model load / unload is not allowed")
_PAUSE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenUp:
    """A version that a server answers with. `told` is False where the server looks by itself."""

    seconds: float
    told: bool


class NotTakenUp(UnfinishedError):  # noqa: N818 - named for what happened
    """The server refused to load the version, or did not answer with it in time."""


def take_up(client: Client, version: Version, manifest: Manifest, *, seconds: float, ask: Ask | None = None) -> TakenUp:
    """Make the server answer with the promoted version, and see that it answers as it was proven to.

    `ask` is how that is seen; by default by the rows of its evidence. Raises NotTakenUp if it refuses the version, is
    not ready with it within `seconds`, or answers otherwise.
    """
    started = time.monotonic()
    told = _tell(client, version)
    address = ModelAddress(name=version.name, version=version.number, outputs=())
    while not _ready(client, address):
        if time.monotonic() - started > seconds:
            raise NotTakenUp(
                f"the server at {client.address} was not ready with {version} after {seconds:g} s",
                expected="a server in explicit mode, or one that polls more often",
                fix="look into the server's log, or give it more time with --wait",
            )
        time.sleep(_PAUSE)
    _require_answers(client, version, (ask or partial(_by_rows, version, manifest))(client))
    return TakenUp(seconds=time.monotonic() - started, told=told)


def _tell(client: Client, version: Version) -> bool:
    """Whether the server took the call: one that polls, or serves a fixed set, does not."""
    try:
        client.load(version.name)
    except RequestFailed as error:
        if any(words in error.found for words in _NOT_EXPLICIT):
            return False
        raise NotTakenUp(
            f"the server at {client.address} could not load {version}: {error.found}",
            fix="look into the server's log; the version it served before is served on",
        ) from error
    return True


def _ready(client: Client, address: ModelAddress) -> bool:
    try:
        return client.ready(address)
    except RequestFailed:
        return False


def _by_rows(version: Version, manifest: Manifest, client: Client) -> Judgement:
    return Asking.published(version, manifest, client).one_by_one().judgement


def _require_answers(client: Client, version: Version, found: Judgement) -> None:
    if not found.passed:
        raise NotTakenUp(
            f"the server at {client.address} does not answer as {version} did when it was proven: {found.reason}",
            expected="the answers of its own evidence",
            fix="see that the server reads this repository, and look into its log",
        )
