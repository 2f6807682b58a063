"""All that a report is made of, read from a version's folder and its attestations.

Owns the reading. What is damaged or unknown is said in the result and never raised: a report must show it. Called by
`html` and the command `report`, and by whoever relies on what is proven: promotion, and the plan for Kubernetes.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from deploy.errors import DeployError
from deploy.evidence import BehaviourEvidence, Judgement, ParityEvidence, ServedEvidence
from deploy.latency_evidence import BenchEvidence, LatencyEvidence
from deploy.records import Record
from deploy.report.signed import signature_line
from deploy.repository.attest import Attestation, attestations
from deploy.repository.find import read_manifest
from deploy.repository.integrity import changes, config_strays
from deploy.repository.layout import EVIDENCE_FOLDER, Version
from deploy.repository.manifest import Manifest, version_digest
from deploy.slo.records import RateEvidence, SloEvidence
from deploy.slo.tune_records import TuneEvidence
from deploy.validate.difference_records import DiffEvidence

PARITY_FILE = "parity.json"
LATENCY_FILE = "latency.json"
SERVED_FILE = "served.json"
BEHAVIOUR_FILE = "behaviour.json"
PRECISION_FILE = "precision.json"

Known = SloEvidence | RateEvidence | BenchEvidence | TuneEvidence | DiffEvidence

_KINDS: dict[str, type[Known]] = {
    "slo": SloEvidence,
    "rate": RateEvidence,
    "bench": BenchEvidence,
    "tune": TuneEvidence,
    "diff": DiffEvidence,
}
R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """What packaging proved of a version. A record is None where it was not made; `damage` names unreadable files."""

    manifest: Manifest
    parity: tuple[ParityEvidence, ...]
    behaviour: BehaviourEvidence | None
    latency: LatencyEvidence | None
    served: ServedEvidence | None
    damage: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """One attestation. `record` is None for a kind this release does not know, and for a damaged file.

    `judgement` and `latency` are what a record of an unknown kind says under those names.
    """

    kind: str
    time: str
    file: str
    record: Known | None = None
    judgement: Judgement | None = None
    latency: LatencyEvidence | None = None
    damage: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """A version as a report shows it. `changed` says what is not as it was published, in the version and beside it.

    `digest` is None while the version is being packaged: it covers the report itself. `signature` is a line about who
    says to have signed it, empty as long.
    """

    packaged: Packaged
    digest: str | None = None
    changed: tuple[str, ...] = ()
    learnt: tuple[Learnt, ...] = field(default=())
    signature: str = ""


def other_parity_file(name: str) -> str:
    """Where the parity of a format lies that was built beside the version's own: `parity-aoti.json`."""
    return f"parity-{name}.json"


def read_packaged(folder: Path, manifest: Manifest) -> Packaged:
    """The evidence that lies in a version's folder."""
    evidence = folder / EVIDENCE_FOLDER
    compiled = manifest.format not in ("python", "ensemble")
    damage: list[str] = []

    def read(kind: type[R], name: str, *, required: bool = False) -> R | None:
        try:
            return kind.read(evidence / name) if required or (evidence / name).exists() else None
        except DeployError as error:
            damage.append(_without_folder(error, evidence))
            return None

    others = sorted(path.name for path in evidence.glob(other_parity_file("*")))
    parity = [read(ParityEvidence, PARITY_FILE, required=compiled), *(read(ParityEvidence, name) for name in others)]
    return Packaged(
        manifest=manifest,
        parity=tuple(one for one in parity if one is not None),
        behaviour=read(BehaviourEvidence, BEHAVIOUR_FILE),
        latency=read(LatencyEvidence, LATENCY_FILE),
        served=read(
            ServedEvidence, SERVED_FILE, required=manifest.served_check == "done" and manifest.format != "python"
        ),
        damage=tuple(damage),
    )


def read_findings(version: Version) -> Findings:
    """A published version with its attestations. Raises UsageError if there is no manifest that is its own."""
    manifest = read_manifest(version)
    digest = version_digest(version.folder)
    return Findings(
        packaged=read_packaged(version.folder, manifest),
        digest=digest,
        changed=(*changes(version, manifest), *config_strays(version)),
        learnt=tuple(read_attestation(one, digest) for one in attestations(version)),
        signature=signature_line(version),
    )


def read_attestation(attestation: Attestation, digest: str) -> Learnt:
    """What an attestation says, as far as this release understands it; one of another version counts as damaged."""
    bare = Learnt(kind=attestation.kind, time=attestation.time, file=attestation.path.name)
    try:
        if kind := _KINDS.get(attestation.kind):
            return _learnt(bare, kind.read(attestation.path), digest)
        content = json.loads(attestation.path.read_bytes())
    except DeployError as error:
        return replace(bare, damage=_without_folder(error, attestation.path.parent))
    except (OSError, ValueError, RecursionError) as error:
        return replace(bare, damage=f"{attestation.path.name} cannot be read: {error}")
    return replace(bare, judgement=_first(Judgement, content), latency=_first(LatencyEvidence, content))


def _learnt(bare: Learnt, record: Known, digest: str) -> Learnt:
    """What a record of a known kind says."""
    if _made_for(record) not in (None, digest):
        return replace(bare, damage=f"{bare.file} belongs to another version")
    if isinstance(record, BenchEvidence):
        return replace(bare, record=record, judgement=record.latency.judgement, latency=record.latency)
    if isinstance(record, DiffEvidence):
        return replace(bare, record=record, judgement=record.judgement, latency=record.latency)
    return replace(bare, record=record, judgement=record.judgement)


def _without_folder(error: DeployError, folder: Path) -> str:
    """What was found; where the repository lies on this machine says nothing to the report's readers."""
    return error.found.replace(f"{folder}/", "")


def _made_for(record: Known) -> str | None:
    """The digest of the version that a record names."""
    if isinstance(record, BenchEvidence | DiffEvidence):
        return record.digest
    if isinstance(record, RateEvidence):
        return record.version_digest or (record.final.version_digest if record.final else None)
    return record.version_digest


def _first(kind: type[R], content: Any) -> R | None:
    """The first value of that kind at the top of a document, or one level below."""
    for candidate in _candidates(content):
        with suppress(ValidationError):
            return kind.model_validate_json(json.dumps(candidate))
    return None


def _candidates(content: Any) -> Iterator[Any]:
    yield content
    if isinstance(content, dict):
        # A record's own verdict stands before those of its parts.
        yield from (content[name] for name in ("judgement", "latency") if name in content)
        yield from (value for value in content.values() if isinstance(value, dict))
