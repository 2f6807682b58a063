"""The report is a file of the version: drawn in a child, covered by the manifest, true of what was published."""

from pathlib import Path

import pytest

from deploy.errors import UnfinishedError
from deploy.report.child import Reporter
from deploy.report.html import REPORT_FILE
from deploy.repository.layout import Version
from deploy.repository.manifest import Manifest, verify_files
from deploy.repository.publish import publish
from deploy.repository.stage import open_stage
from tests.report.samples import STORY, tell


def publish_with_report(repository: Path, *, meanwhile: bool = False) -> Version:
    """A version with its report; `meanwhile` somebody else takes the number that it was staged for."""
    taken: list[str] = []

    def on_step(name: str) -> None:
        if meanwhile and name == "sealed" and not taken:
            taken.append(name)
            tell(repository)

    with open_stage(repository, "pets", on_step=on_step) as stage:
        STORY.populate(stage)
        with Reporter(stage, STORY.manifest()) as reporter:
            return publish(stage, STORY.manifest(), late={REPORT_FILE: reporter.page}).version


def test_the_manifest_covers_the_report_and_the_report_shows_the_manifest(tmp_path: Path) -> None:
    version = publish_with_report(tmp_path / "models")
    manifest = verify_files(version.folder)
    page = (version.evidence / REPORT_FILE).read_text()
    assert [entry.path for entry in manifest.files if entry.path.endswith(".html")] == ["evidence/report.html"]
    assert [entry.path for entry in manifest.files] == sorted(entry.path for entry in manifest.files)
    for entry in manifest.files:
        assert (entry.sha256 in page) == (entry.path != "evidence/report.html")


def test_a_number_that_was_taken_meanwhile_is_not_in_the_report(tmp_path: Path) -> None:
    version = publish_with_report(tmp_path / "models", meanwhile=True)
    assert version.number == 2
    verify_files(version.folder)
    page = (version.evidence / REPORT_FILE).read_text()
    assert ">pets:2</h1>" in page
    assert "pets:1" not in page
    assert page.count(">evidence/parity.json</th>") == 1
    assert ">evidence/report.html</th>" not in page


def test_a_page_that_cannot_be_drawn_publishes_nothing(tmp_path: Path) -> None:
    repository = tmp_path / "models"

    def page(manifest: Manifest) -> bytes:
        raise UnfinishedError(f"the report of {manifest.name} could not be drawn")

    with open_stage(repository, "pets") as stage:
        STORY.populate(stage)
        with pytest.raises(UnfinishedError):
            publish(stage, STORY.manifest(), late={REPORT_FILE: page})
    assert list(repository.iterdir()) == []


def test_the_child_is_gone_when_the_block_is_left(tmp_path: Path) -> None:
    with open_stage(tmp_path / "models", "pets") as stage:
        STORY.populate(stage)
        with pytest.raises(RuntimeError, match="on the way"), Reporter(stage, STORY.manifest()) as reporter:
            raise RuntimeError("on the way")
        assert not reporter.alive
