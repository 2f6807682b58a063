"""Attestations lie beside a version, keyed by its digest; none overwrites another, and none changes the version."""

import errno
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.errors import UnfinishedError, UsageError
from deploy.evidence import Judgement, Verdict
from deploy.repository.attest import attest, attestations
from deploy.repository.layout import Version
from deploy.repository.manifest import verify_files, version_digest
from tests.repository.samples import put

RECORD = Judgement(verdict=Verdict.PASS, reason="it was kept")


@pytest.fixture
def version(tmp_path: Path) -> Version:
    return put(tmp_path / "models").version


def test_what_was_attested_is_found_in_order(version: Version) -> None:
    paths = [attest(version, kind, RECORD) for kind in ("slo", "bench", "slo", "slo")]
    found = attestations(version)
    assert sorted(one.path for one in found) == sorted(paths)
    assert len(set(paths)) == 4, "two in one second get two files"
    assert [one.time for one in found] == sorted(one.time for one in found)
    assert all(Judgement.read(one.path) == RECORD for one in found)
    assert {path.parent.name for path in paths} == {version_digest(version.folder)}


def test_what_is_attested_after_the_clock_was_set_back_still_comes_last(version: Version) -> None:
    first = attest(version, "slo", RECORD)
    ahead = datetime.now(UTC) + timedelta(hours=2)
    first = first.rename(first.with_name(f"slo-{ahead:%Y%m%dT%H%M%SZ}.json"))
    far = first.with_name(f"slo-{ahead + timedelta(days=900):%Y%m%dT%H%M%SZ}.json")
    far.write_bytes(first.read_bytes())
    bench, second, third = (attest(version, kind, RECORD) for kind in ("bench", "slo", "slo"))
    assert [one.path for one in attestations(version)] == [bench, first, second, third, far]


def test_the_version_itself_stays_as_it_was(version: Version) -> None:
    attest(version, "slo", RECORD)
    verify_files(version.folder)


def test_another_versions_attestations_are_not_its_own(version: Version) -> None:
    attest(version, "slo", RECORD)
    second = put(version.repository).version
    assert attestations(second) == ()


def test_foreign_files_are_no_attestations(version: Version) -> None:
    folder = attest(version, "slo", RECORD).parent
    for name in ("notes.json", "slo-yesterday.json", ".slo-20260101T000000Z.json.x"):
        (folder / name).write_text("{}")
    assert len(attestations(version)) == 1


def test_a_full_disk_is_said_with_what_was_lost(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UnfinishedError, match="the disk is full while keeping the result of slo beside pets:1"):
        attest(version, "slo", RECORD)
    assert attestations(version) == ()
    assert not list((version.model_folder / "attestations").rglob("*.json*"))


def test_a_result_of_a_version_that_was_replaced_or_removed_is_not_kept(version: Version) -> None:
    measured = version_digest(version.folder)
    assert attest(version, "slo", RECORD, digest=measured).parent.name == measured
    text = version.manifest.read_text()
    version.manifest.write_text(text + "\n")
    with pytest.raises(UnfinishedError, match="pets:1 was replaced meanwhile, so the result of slo is not kept"):
        attest(version, "slo", RECORD, digest=measured)
    assert attestations(version) == (), "none is credited to the other"
    version.manifest.unlink()
    with pytest.raises(UnfinishedError, match="pets:1 was removed meanwhile"):
        attest(version, "slo", RECORD, digest=measured)


def test_a_folder_without_a_manifest_has_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no manifest"):
        attest(Version(repository=tmp_path, name="pets", number=1), "slo", RECORD)
