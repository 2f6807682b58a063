"""A version of a local repository goes to another place, under its own number or, where asked, the next free one.

Owns the order of the steps and what a taken number means. Called by the command line.

    1. Open the destination: what is not installed or not allowed is said before any work.
    2. Compare every file with its digest, and the contract with the one that binds the name there.
    3. Choose the number: its own; with `renumber` the first from there on that is free, or this version's already.
    4. Send it. Whoever took the number meanwhile keeps it, and 3 is asked again.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.errors import UnfinishedError, UsageError
from deploy.progress import Progress, Silent
from deploy.release.stores.bundle import Bundle, renumber, renumbered_digest
from deploy.release.stores.folders import FolderStore, local_bundle
from deploy.release.stores.opening import open_store
from deploy.release.stores.store import (
    Sent,
    Store,
    Taken,
    check_contract_there,
    check_steps_there,
    read,
    require_released,
)

_NUMBERS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishRequest:
    """What is asked: `reference` is `NAME[:N]`, without N the promoted version; `destination` a folder or a URL."""

    repository: Path
    reference: str
    destination: str
    renumber: bool = False
    promote: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A version that is now there. `new` is false where it was there before; `renumbered_from` None unless it was.

    `steps` are the versions that an ensemble runs, which were sent before it.
    """

    name: str
    number: int
    digest: str
    destination: str
    new: bool
    renumbered_from: int | None
    sent: Sent
    steps: tuple[str, ...] = ()


def run_publish(request: PublishRequest, *, progress: Progress = Silent()) -> Published:
    """The version as it now is in the destination.

    Raises UsageError if a file has changed, the contract would, or the number is another version's.
    """
    store = open_store(request.destination)  # 1
    with progress.stage(f"compare {request.reference} with its digests"):
        bundle = local_bundle(request.repository, request.reference)  # 2
        require_released(bundle.manifest, where=request.repository)
        check_contract_there(store, bundle.manifest)
    steps = _send_steps(store, bundle, request, progress)
    with _scratch() as scratch:
        for number in _candidates(store, bundle, request):  # 3
            chosen = renumber(bundle, number, scratch) if request.renumber else bundle
            there = read(store, chosen.version.name, number)
            try:
                with progress.stage(f"publish {chosen.version} to {store}"):
                    sent = store.send(chosen, promote=request.promote, progress=progress)  # 4
            except Taken as taken:
                if request.renumber:
                    continue
                raise _refused(taken, bundle, store) from taken
            return Published(
                name=chosen.version.name,
                number=number,
                digest=chosen.digest,
                destination=str(store),
                new=there is None,
                renumbered_from=bundle.version.number if number != bundle.version.number else None,
                sent=sent,
                steps=steps,
            )
    raise UnfinishedError(
        f"no free number was found for {bundle.version.name} in {store}",
        expected=f"one of {_NUMBERS:,} numbers from {bundle.version.number} on",
        fix="package it under another --name",
    )


def _send_steps(store: Store, bundle: Bundle, request: PublishRequest, progress: Progress) -> tuple[str, ...]:
    """Send what an ensemble runs before it. Raises UsageError if it would be served there without its steps."""
    manifest = bundle.manifest
    if not manifest.steps:
        return ()
    if request.renumber:
        raise UsageError(
            f"{bundle.version} is an ensemble, which runs its steps by number",
            expected="its own number and theirs in the destination",
            fix="leave --renumber out, or publish to another place",
        )
    check_steps_there(store, manifest, promote=request.promote, brings=isinstance(store, FolderStore))
    for step in manifest.steps:
        run_publish(replace(request, reference=str(step), promote=False), progress=progress)
    return tuple(map(str, manifest.steps))


def _candidates(store: Store, bundle: Bundle, request: PublishRequest) -> Iterator[int]:
    """The numbers to try: those that are free, or belong to this very version, which an earlier run may have begun."""
    own = bundle.version.number
    if not request.renumber:
        yield own
        return
    for number in range(own, own + _NUMBERS):
        if store.owner(bundle.version.name, number) in (None, renumbered_digest(bundle, number)):
            yield number


def _refused(taken: Taken, bundle: Bundle, store: Store) -> UsageError:
    name = f"{bundle.version.name}:{taken.number}"
    if taken.published:
        return UsageError(
            f"{store} has another {name}",
            expected=f"digest {bundle.digest}",
            fix="publish with --renumber, which takes the next free number and so changes the digest",
        )
    return UsageError(
        f"{name} in {store} is claimed by another version, {taken.digest}, which is not whole yet",
        expected="a number that is free",
        fix="publish with --renumber; or, if that publisher is gone for good, let it run again, or remove "
        f"{taken.claim}",
    )


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="deployctl-") as folder:
        yield Path(folder)
