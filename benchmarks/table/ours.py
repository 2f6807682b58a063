"""Our side of the table: how `deployctl package` is asked, and what it published.

Owns the command line. Called by measure.
"""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.table.records import OURS
from benchmarks.table.subjects import Subject
from deploy.convert.model import ARTIFACT_FILES, FORMATS, Format
from deploy.latency_evidence import LatencyEvidence
from deploy.report.findings import LATENCY_FILE
from deploy.repository.find import find_version, list_models
from deploy.repository.layout import Version
from deploy.repository.manifest import Manifest, verify_files
from deploy.validate.baseline import Baseline
from deploy.validate.contenders import Entrant, artifact_entrant
from deploy.validate.store import load_baseline

# The one place that says how ours is made. Both formats are published, so that both can be raced here; nothing is
# served, since no other route is. Each format's tactic is looked for, and it and the format are chosen by a measurement
# of the command's own, which is as long as a search takes at most. The artifacts of the default effort are made first,
# by the very stages that the default effort has: those are what the script by hand is compared with.
PACKAGE = ("--all-formats", "--no-serve-check", "--effort", "normal", "--seconds-per-cell", "1")
CONVERSIONS = tuple(f"convert to {name}" for name in FORMATS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """What was published of a model, by format; `chosen` is the format that the command's own measurement took."""

    versions: dict[Format, Version]
    manifests: dict[Format, Manifest]
    chosen: Format | None

    def baseline(self) -> Baseline:
        """The inputs, reference values and budgets that all routes are judged by."""
        name = next(iter(self.versions))
        return load_baseline(self.versions[name].evidence, self.manifests[name].spec)

    def entrants(self, threads: int) -> list[Entrant]:
        """Our artifacts as they are served: with what their config asks of the runtime."""
        return [
            artifact_entrant(
                OURS[name],
                version.folder / ARTIFACT_FILES[name],
                format=name,
                threads=threads,
                details=self.manifests[name].artifact,
            )
            for name, version in self.versions.items()
        ]


def package_arguments(subject: Subject, repository: Path) -> list[str]:
    """The command line after `python`."""
    what = [str(subject.weights), "--name", subject.name, "--repository", str(repository)]
    return ["-m", "deploy", "package", *what, "--max-batch", str(subject.max_batch), *PACKAGE]


def read_packaged(subject: Subject, repository: Path) -> Packaged:
    """The versions that the command published, every file compared with its digest."""
    published = {model.name for model in list_models(repository)}
    names: dict[Format, str] = {name: f"{subject.name}_{name}" for name in FORMATS}
    versions = {name: find_version(repository, model) for name, model in names.items() if model in published}
    manifests = {name: verify_files(version.folder) for name, version in versions.items()}
    first = next(iter(versions.values()))
    latency = LatencyEvidence.read(first.evidence / LATENCY_FILE)
    return Packaged(versions=versions, manifests=manifests, chosen=_chosen(latency))


def _chosen(latency: LatencyEvidence) -> Format | None:
    """The winner; where the machine was too noisy for one, the format with the lower median at batch 1."""
    medians = {
        name: cell.p50.value
        for name in FORMATS
        for cell in latency.cells
        if (cell.contender, cell.batch) == (name, 1) and cell.p50
    }
    by_name = {str(name): name for name in FORMATS}
    if latency.winner in by_name:
        return by_name[latency.winner]
    return min(medians, key=lambda name: medians[name], default=None)
