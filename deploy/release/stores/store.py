"""What publish and pull ask of a place where versions lie, whatever kind it is.

Owns the questions, and what is the same for each kind: which number is meant, which contract binds. `folders`,
`objects` and `oci` answer them.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deploy.errors import UsageError
from deploy.files import sha256_bytes
from deploy.progress import Progress
from deploy.release.stores.bundle import Bundle, Part
from deploy.repository.contract import contract_changes
from deploy.repository.manifest import MANIFEST_FILE, Manifest

_CREDENTIAL = re.compile(r"://[^/\s@]*:[^\s@]*@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What one publishing moved. `present` files were there already, whole, and were not sent again."""

    files: int
    size: int
    present: int
    promoted: bool


class Taken(Exception):  # noqa: N818 - a fact that publish decides about, no error of the user's
    """A number belongs to another version: `digest` where it is known, `published` where that one is whole.

    `claim` says what keeps it for one that is not, in words that follow "remove".
    """

    def __init__(self, number: int, *, digest: str | None, published: bool, claim: str = "") -> None:
        self.number = number
        self.digest = digest
        self.published = published
        self.claim = claim
        super().__init__(number)


class Store(Protocol):
    """A place that holds versions, of which a reader only ever sees whole ones."""

    def numbers(self, name: str) -> tuple[int, ...]:
        """The numbers of a model's whole versions, ascending; empty if there is no such model."""

    def promoted(self, name: str) -> int | None:
        """The version that the place says is to be served, None if it says none."""

    def marker(self, name: str, number: int) -> bytes | None:
        """The bytes of a version's manifest; None while the version is not there, or not whole."""

    def pledged(self, name: str, number: int) -> str | None:
        """The digest that the place keeps of a version beside its manifest; None where it keeps none."""

    def owner(self, name: str, number: int) -> str | None:
        """The digest of the version that holds a number, published or on its way; None if it is free."""

    def attested(self, name: str, number: int, digest: str) -> tuple[Part, ...]:
        """What is attested of a version there, signatures last."""

    def fetch(self, name: str, part: Part, destination: Path) -> None:
        """Write one file of a model to `destination`, whose folder exists. Checks nothing."""

    def send(self, bundle: Bundle, *, promote: bool, progress: Progress) -> Sent:
        """Make the version visible there, whole, with what is attested of it; a first one is promoted.

        Raises Taken if its number belongs to another version.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A version of a store, by its number and the digest of its manifest."""

    manifest: Manifest
    digest: str


def find(store: Store, name: str, number: int | None) -> Found:
    """The version that `NAME[:N]` means in a store; without N the promoted one.

    Raises UsageError if it is not there whole, naming those that are, or its manifest is another's.
    """
    if number is None:
        number = store.promoted(name)
        if number is None:
            raise UsageError(
                f"no version of {name} is promoted in {store}",
                expected=_listed(store, name),
                fix="name the version: NAME:N",
            )
    found = read(store, name, number)
    if found is None:
        raise UsageError(f"{store} has no whole version {name}:{number}", expected=_listed(store, name))
    return found


def read(store: Store, name: str, number: int) -> Found | None:
    """A version of a store, None if it is not there whole. Raises UsageError if its manifest is another's."""
    data = store.marker(name, number)
    if data is None:
        return None
    where = f"the manifest of {name}:{number} in {store}"
    try:
        manifest = Manifest.model_validate_json(data)
    except ValueError as error:
        raise UsageError(
            f"{where} is not valid",
            expected="a manifest that deployctl wrote, unedited",
            fix="publish the version again under another number, or restore the store",
        ) from error
    if (manifest.name, manifest.version) != (name, number):
        raise UsageError(
            f"{where} belongs to {manifest.name}:{manifest.version}",
            expected="the version's own",
            fix="publish the version again under another number, or restore the store",
        )
    digest, pledged = sha256_bytes(data), store.pledged(name, number)
    if pledged not in (None, digest):
        raise UsageError(
            f"{number}/{MANIFEST_FILE} in {store} is not what was published",
            expected=f"SHA-256 {pledged}, as its publisher noted beside it",
            fix="publish the version again under another number, or restore the store",
        )
    return Found(manifest=manifest, digest=digest)


def require_released(manifest: Manifest, *, where: object) -> None:
    """Raises UsageError if a check of the version did not pass, or its recorded command holds a credential.

    The first version of a model is promoted where it arrives, so this is asked on both ends.
    """
    name = f"{manifest.name}:{manifest.version}"
    if blockers := manifest.blockers():
        raise UsageError(
            f"{name} in {where} is not proven: {'; '.join(blockers)}",
            expected="checks that passed",
            fix="package the checkpoint again: what a check refused is not sent on",
        )
    if any(_CREDENTIAL.search(word) for word in manifest.command):
        raise UsageError(
            f"the command in the manifest of {name} holds a URL with a password, which is not repeated here",
            expected="a version that was packaged without one on its command line",
            fix="package it again; a manifest cannot be changed, so what it holds travels with it",
        )


def check_contract_there(store: Store, manifest: Manifest) -> None:
    """Raises UsageError if clients of the version that binds the name there would notice the change.

    Not if the version was packaged with --new-contract: that was accepted then.
    """
    promoted, numbers = store.promoted(manifest.name), store.numbers(manifest.name)
    binding = promoted if promoted in numbers else min(numbers, default=None)
    bound = read(store, manifest.name, binding) if binding is not None else None
    changes = contract_changes(bound.manifest, manifest) if bound and not manifest.contract_changes else ()
    if changes:
        raise UsageError(
            f"{manifest.name} in {store} is bound to another contract: {'; '.join(map(str, changes))}",
            expected=f"the contract of {manifest.name}:{binding} there",
            fix="package it under another name, or with --new-contract",
        )


def check_steps_there(store: Store, manifest: Manifest, *, promote: bool = False, brings: bool = False) -> None:
    """Raises UsageError if an ensemble would be served there as soon as it comes, and a step of it would not.

    A first version is served where it arrives. `brings` says that promotion there brings the steps along.
    """
    name, first = f"{manifest.name}:{manifest.version}", not store.numbers(manifest.name)
    if not first and (brings or not promote):
        return
    for step in manifest.steps:
        there = store.promoted(step.model)
        # The first version of a step comes with its promotion too.
        if there == step.version or (there is None and not store.numbers(step.model)):
            continue
        raise UsageError(
            f"{name} would be served in {store} at once, and runs {step}, where version {there} is promoted",
            expected=f"{step} promoted there, or a place with no {step.model}",
            fix=f"promote {step} there first" if first else "leave --promote out, and promote in a folder",
        )


def _listed(store: Store, name: str) -> str:
    numbers = store.numbers(name)
    return f"one of {', '.join(f'{name}:{number}' for number in numbers)}" if numbers else f"a place that holds {name}"
