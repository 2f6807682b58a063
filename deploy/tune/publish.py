"""A published version becomes the next one: the same artifact, another config, and the search as new evidence.

Owns what of the old version is linked, copied and made anew; stage and rename are the repository's. The new config is
served from the stage and its answers judged before anything is published. Called by run.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from deploy.errors import UnfinishedError
from deploy.evidence import ServedEvidence
from deploy.files import disk_errors_explained, link_or_copy
from deploy.progress import Progress
from deploy.report.child import Reporter
from deploy.report.findings import SERVED_FILE
from deploy.report.html import REPORT_FILE
from deploy.repository.config import renumbered
from deploy.repository.integrity import require_intact
from deploy.repository.layout import CONFIG_FILE, EVIDENCE_FOLDER, WARMUP_FOLDER, Version
from deploy.repository.lint import require_clean
from deploy.repository.manifest import Manifest, created_now
from deploy.repository.protobuf import format_config
from deploy.repository.publish import PublishedVersion, PublishOptions, publish
from deploy.repository.stage import Stage, open_stage
from deploy.serve.engines import Engine
from deploy.serve.parity import ServedQuestion, check_served
from deploy.slo.tune_records import TuneEvidence
from deploy.validate.store import load_baseline

TUNING_FILE = "tuning.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Successor:
    """What the next version is made of. `engine` serves it from the stage; None leaves that out.

    `instead_of` is the version that was promoted as the search began, None where none was: no other gives way to it.
    """

    version: Version
    config: Any
    evidence: TuneEvidence
    command: tuple[str, ...]
    engine: Engine | None
    promote: bool
    instead_of: int | None = None


def publish_tuned(successor: Successor, *, progress: Progress) -> PublishedVersion:
    """The new version. The old one is neither changed nor moved.

    Raises UsageError if the old one has changed meanwhile, UnfinishedError if the new config is not served right.
    """
    old = require_intact(successor.version)
    with open_stage(successor.version.repository, successor.version.name) as stage:
        with disk_errors_explained("staging the tuned version"):
            _fill(stage, successor, old)
        require_clean(stage.version.config.read_text(), folder=stage.version.model_folder)
        manifest = old.model_copy(
            update={
                "version": stage.version.number,
                "created": created_now(),
                "command": successor.command,
                "contract_changes": (),
                "files": (),
            }
        )
        if successor.engine is not None:
            with progress.stage("serve the tuned version in a real Triton"):
                manifest = _served(stage, manifest, successor.engine)
        with Reporter(stage, manifest) as reporter:
            options = PublishOptions(promote=successor.promote, leaving=successor.instead_of)
            return publish(stage, manifest, options, late={REPORT_FILE: reporter.page})


def _fill(stage: Stage, successor: Successor, old: Manifest) -> None:
    """Evidence is copied and all else linked: the same bytes, which nobody writes to."""
    source, folder = successor.version.folder, stage.version.folder
    remade = {CONFIG_FILE, f"{EVIDENCE_FOLDER}/{REPORT_FILE}"}
    for entry in old.files:
        if entry.path in remade:
            continue
        if PurePosixPath(entry.path).parts[0] == EVIDENCE_FOLDER:
            (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / entry.path, folder / entry.path)
        else:
            link_or_copy(source / entry.path, folder / entry.path)
    _link_warmup(successor.version.model_folder / WARMUP_FOLDER, stage, successor.config)
    # Still the old number: publishing writes the one that it takes.
    stage.add_config(renumbered(format_config(successor.config), stage.version.number))
    stage.add_evidence(TUNING_FILE, successor.evidence.to_json().encode())
    stage.step("evidence-added")


def _link_warmup(source: Path, stage: Stage, config: Any) -> None:
    named = {entry.input_data_file for warmup in config.model_warmup for entry in warmup.inputs.values()}
    for name in sorted(named - {""}):
        link_or_copy(source / name, stage.version.model_folder / WARMUP_FOLDER / name)


def _served(stage: Stage, manifest: Manifest, engine: Engine) -> Manifest:
    """The manifest with the new config's own served verdict, which its evidence now says too."""
    baseline = load_baseline(stage.version.evidence, manifest.spec)
    question = ServedQuestion(baseline=baseline, format=manifest.compiled, classes=manifest.classes)
    served: ServedEvidence = check_served(stage.version, engine, question, staged=True)
    if not served.judgement.passed:
        raise UnfinishedError(
            f"the tuned configuration was measured, but is not served right: {served.judgement.reason}",
            expected="the same answers as before",
            fix="report it as a bug; nothing was published",
        )
    stage.add_evidence(SERVED_FILE, served.to_json().encode())
    verdicts = manifest.verdicts.model_copy(update={"served": served.judgement})
    return manifest.model_copy(update={"verdicts": verdicts, "served_check": "done"})
