"""What is searched: a published version that may be released, its config, and what of it can be turned.

Owns what is refused before any load. Called by run.
"""

from dataclasses import dataclass
from typing import Any

from deploy.errors import MissingError, UsageError
from deploy.repository.attest import require_attestable
from deploy.repository.contract import check_contract
from deploy.repository.find import find_version
from deploy.repository.integrity import require_artifact, require_intact
from deploy.repository.layout import Version, promoted_version
from deploy.repository.manifest import Manifest, version_digest
from deploy.repository.protobuf import parse_config
from deploy.slo.tune_records import Knob, Setting
from deploy.tune.bed import check_bound
from deploy.tune.knobs import find_knobs, only, own_setting
from deploy.tune.request import TuneRequest
from deploy.validate.store import RECORD as SAMPLES_FILE

_MOST_INSTANCES = 64
# A backend's process with its runtime; weights, their optimised copy and the activations.
_INSTANCE_BYTES = 200 * 1024 * 1024
_ARTIFACT_COPIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The version that is searched, what it says of itself, and what can be turned.

    `promoted` is the version that was promoted as the search began, None where none was.
    """

    version: Version
    manifest: Manifest
    config: Any
    own: Setting
    knobs: tuple[Knob, ...]
    digest: str
    promoted: int | None


def find_subject(request: TuneRequest) -> Subject:
    """The version that is to be searched, as it was published, with what can be turned.

    Raises UsageError if it cannot be searched or its next one not be published, MissingError without the device.
    """
    check_bound(request.bound)
    version = find_version(request.repository, request.reference)
    manifest = require_artifact(version, require_intact(version), doing="search its batching")
    if manifest.blockers():
        raise UsageError(
            f"{version} may not be released: {'; '.join(manifest.blockers())}",
            expected="a version whose checks passed",
            fix="package the checkpoint again until its checks pass",
        )
    if manifest.target.device != "cpu" and request.engine.kind == "local":
        raise MissingError(
            f"{version} is built for {manifest.target.device} (target {manifest.target.name}), and the local engine "
            "runs on the CPU",
            expected="a native tritonserver with that device",
            fix="tune where it will run, with --engine native",
        )
    if not (version.evidence / SAMPLES_FILE).is_file():
        raise UsageError(
            f"{version} keeps no samples",
            expected="the samples it was proven with, in its evidence",
            fix="package the checkpoint again",
        )
    # Found out now and not after all trials, as is that the next version would bring this one's contract.
    if not request.dry_run:
        require_attestable(version, fix="add --dry-run to see what the search comes to, or change its permissions")
    check_contract(request.repository, version.name, manifest, accept=False)
    config = parse_config(version.config.read_text())
    knobs = find_knobs(
        manifest,
        config,
        cores=request.cores,
        bound_ms=request.bound.limit,
        most_instances=_instances_in_memory(manifest),
    )
    return Subject(
        version=version,
        manifest=manifest,
        config=config,
        own=only(own_setting(config), knobs),
        knobs=knobs,
        digest=version_digest(version.folder),
        promoted=promoted_version(version.model_folder),
    )


def _instances_in_memory(manifest: Manifest) -> int:
    """How many instances fit half of the memory, supposing that each takes its artifact a few times.

    Of all memory and not of what is free now: a search is resumed with the knobs that it began with.
    """
    import psutil

    artifact = max(entry.size for entry in manifest.files)
    half: int = psutil.virtual_memory().total // 2
    return max(1, min(_MOST_INSTANCES, half // (_INSTANCE_BYTES + _ARTIFACT_COPIES * artifact)))
