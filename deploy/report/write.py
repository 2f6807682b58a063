"""A version's report as a file somewhere: found, read, drawn and written whole.

Owns the order of these steps. Called by the command `report`.
"""

from dataclasses import dataclass
from pathlib import Path

from deploy.errors import UsageError
from deploy.files import disk_errors_explained, require_writable, write_atomically
from deploy.report.findings import read_findings
from deploy.report.html import render_html
from deploy.report.standing import Check, checks
from deploy.repository.find import find_version
from deploy.repository.layout import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Where the report lies, the verdicts on it, and a line on who says to have signed the version."""

    version: Version
    path: Path
    checks: tuple[Check, ...]
    signature: str


def write_report(repository: Path, reference: str, output: Path | None = None) -> Written:
    """Write the report of `NAME[:N]` to `output`, or to `NAME-N.html` in the present folder; an older one is replaced.

    Raises UsageError if there is no such version, or the file would lie inside the repository: Triton reads that, and
    a version takes no more files.
    """
    version = find_version(repository, reference)
    path = output or Path(f"{version.name}-{version.number}.html")
    if path.resolve().is_relative_to(repository.resolve()):
        raise UsageError(
            f"{path} lies in the repository", expected="a file outside of it", fix="choose another --output"
        )
    require_writable(path)
    findings = read_findings(version)
    with disk_errors_explained(f"writing {path}"):
        write_atomically(path, render_html(findings))
    return Written(version=version, path=path, checks=checks(findings), signature=findings.signature)
