"""A version of another place comes into a local repository, whole or not at all.

Owns the order of the steps. Called by the command line.

    1. Open the source, and find the version there; one without its manifest is not there.
    2. Refuse it if a check of it did not pass. Compare its contract with the one that binds the name here.
    3. Fetch every file into a stage, compare each with its digest, and rename.
    4. Fetch what is attested of it and was not here yet.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from deploy.errors import UsageError
from deploy.progress import Progress, Silent
from deploy.release.stores.folders import FolderStore, receive
from deploy.release.stores.opening import open_store
from deploy.release.stores.store import Sent, Taken, check_contract_there, check_steps_there, find, require_released
from deploy.repository.find import parse_reference
from deploy.repository.layout import check_name


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """What is asked: `reference` is `NAME[:N]`, without N the version that is promoted in `source`.

    `digest` is the one that it must have; None takes what is there.
    """

    source: str
    reference: str
    repository: Path
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """A version that is now here. `new` is false where it was here before; `steps` came before an ensemble."""

    name: str
    number: int
    digest: str
    source: str
    new: bool
    received: Sent
    steps: tuple[str, ...] = ()


def run_pull(request: PullRequest, *, progress: Progress = Silent()) -> Pulled:
    """The version as it now is in the repository.

    Raises UsageError if it is not in the source, a file is not as its manifest says, the contract would change, or the
    number is another version's here.
    """
    name, number = parse_reference(request.reference)
    check_name(name)
    store = open_store(request.source)
    here = FolderStore(folder=request.repository)
    with progress.stage(f"find {request.reference} in {store}"):
        found = find(store, name, number)  # 1
        if request.digest not in (None, found.digest):
            raise UsageError(
                f"{name}:{found.manifest.version} in {store} is not the version that was asked for: {found.digest}",
                expected=f"digest {request.digest}",
                fix="ask for the digest that `deployctl publish` printed, or find out who replaced the version",
            )
        manifest = found.manifest
        require_released(manifest, where=store)
        check_contract_there(here, manifest)  # 2
        check_steps_there(here, manifest)
    for step in manifest.steps:
        # An ensemble is nothing without the very versions that it runs.
        run_pull(replace(request, reference=str(step), digest=step.digest), progress=progress)
    before = here.owner(name, manifest.version)
    try:
        with progress.stage(f"receive {name}:{manifest.version}"):
            received = receive(store, manifest, found.digest, request.repository, progress=progress)  # 3, 4
    except Taken as taken:
        raise UsageError(
            f"{request.repository} has another {name}:{taken.number}",
            expected=f"digest {found.digest}",
            fix="pull into another repository, or publish it there with --renumber",
        ) from taken
    return Pulled(
        name=name,
        number=manifest.version,
        digest=found.digest,
        source=str(store),
        new=before is None,
        received=received,
        steps=tuple(map(str, manifest.steps)),
    )
