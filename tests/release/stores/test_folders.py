"""From folder to folder: whole versions only, under their own number, never over another."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.cli.publish import command
from deploy.errors import UsageError
from deploy.release.stores.bundle import Part, make_bundle, renumber, renumbered_digest, signatures_last
from deploy.release.stores.publish import PublishRequest, run_publish
from deploy.release.stores.pull import PullRequest, run_pull
from deploy.repository.find import find_version
from deploy.repository.integrity import require_intact
from deploy.repository.layout import promoted_version, version_numbers
from deploy.repository.manifest import Manifest, verify_files, version_digest
from deploy.repository.protobuf import parse_config
from tests.release.stores.children import die, run_together
from tests.release.stores.packages import files_below, put_attested, put_big
from tests.repository.samples import FAIL, Sample, put


def publish(repository: Path, destination: Path, reference: str = "pets:1", **options: bool) -> str:
    done = run_publish(
        PublishRequest(repository=repository, reference=reference, destination=str(destination), **options)
    )
    return f"{done.number} {'new' if done.new else 'same'} {'promoted' if done.sent.promoted else 'waits'}"


def pull(source: Path, repository: Path) -> str:
    return str(run_pull(PullRequest(source=str(source), reference="pets:1", repository=repository)).number)


def test_a_first_version_arrives_whole_and_promoted(tmp_path: Path) -> None:
    version = put_attested(tmp_path / "from")
    assert publish(tmp_path / "from", tmp_path / "to") == "1 new promoted"
    assert files_below(tmp_path / "to") == files_below(tmp_path / "from")
    assert require_intact(find_version(tmp_path / "to", "pets")).version == 1
    assert version_digest(tmp_path / "to/pets/1") == version_digest(version.folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["from", "to"]


def test_an_edit_of_the_source_does_not_reach_what_was_published(tmp_path: Path) -> None:
    version = put(tmp_path / "from").version
    publish(tmp_path / "from", tmp_path / "to")
    (version.folder / "model.onnx").write_bytes(b"edited!")
    assert verify_files(tmp_path / "to/pets/1").version == 1


def test_a_file_says_where_versions_go_and_nobody_saying_it_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "from")
    (tmp_path / "deploy.toml").write_text('[publish]\nto = "to"\n')
    words = [str(tmp_path / "from"), "pets:1"]
    sent = CliRunner().invoke(command, [*words, "--config", str(tmp_path / "deploy.toml")])
    assert sent.exit_code == 0, sent.output
    assert promoted_version(tmp_path / "to/pets") == 1
    elsewhere = CliRunner().invoke(
        command, [*words, str(tmp_path / "there"), "--config", str(tmp_path / "deploy.toml")]
    )
    assert elsewhere.exit_code == 0, elsewhere.output
    assert promoted_version(tmp_path / "there/pets") == 1
    refused = CliRunner().invoke(command, words)
    assert isinstance(refused.exception, UsageError)
    assert "[publish]" in refused.exception.expected


def test_a_later_version_waits_unless_promotion_is_asked_for(tmp_path: Path) -> None:
    for weights in (b"one", b"two", b"three"):
        put(tmp_path / "from", Sample(weights=weights))
    publish(tmp_path / "from", tmp_path / "to")
    assert publish(tmp_path / "from", tmp_path / "to", "pets:2") == "2 new waits"
    assert publish(tmp_path / "from", tmp_path / "to", "pets:3", promote=True) == "3 new promoted"
    assert promoted_version(tmp_path / "to/pets") == 3


def test_what_is_there_is_left_and_what_was_attested_later_follows(tmp_path: Path) -> None:
    put(tmp_path / "from")
    publish(tmp_path / "from", tmp_path / "to")
    manifest = tmp_path / "to/pets/1/manifest.json"
    before = manifest.stat()
    digest = version_digest(tmp_path / "from/pets/1")
    late = tmp_path / f"from/pets/attestations/{digest}/slo-20261101T000000Z.json"
    late.parent.mkdir(parents=True)
    late.write_text("{}")
    (late.parent / ".slo-20261102T000000Z.json.x1").write_text("{")
    assert publish(tmp_path / "from", tmp_path / "to") == "1 same promoted"
    assert (manifest.stat().st_ino, manifest.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(files_below(tmp_path / "to/pets/attestations")) == [f"{digest}/{late.name}"]


def test_a_taken_number_is_refused_and_renumbering_is_the_way_out(tmp_path: Path) -> None:
    put_attested(tmp_path / "from", b"ours")
    put(tmp_path / "to", Sample(weights=b"theirs"))
    with pytest.raises(UsageError, match=r"has another pets:1[\s\S]*--renumber"):
        publish(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to/pets/1/model.onnx").read_bytes() == b"theirs"
    assert publish(tmp_path / "from", tmp_path / "to", renumber=True) == "2 new waits"
    received = find_version(tmp_path / "to", "pets:2")
    assert require_intact(received).version == 2
    assert (received.folder / "model.onnx").read_bytes() == b"ours"
    config = parse_config(received.config.read_text())
    assert (list(config.version_policy.specific.versions), config.output[0].label_filename) == ([2], "2/labels.txt")
    assert not (tmp_path / "to/pets/attestations").exists()
    # Asked again, it finds itself.
    assert publish(tmp_path / "from", tmp_path / "to", renumber=True) == "2 same waits"
    assert version_numbers(tmp_path / "to/pets") == (1, 2)


def test_numbers_taken_one_after_the_other_are_passed_by(tmp_path: Path) -> None:
    bundle = make_bundle(put(tmp_path / "from").version)
    for number in (2, 3):
        assert renumber(bundle, number, tmp_path / "scratch").digest == renumbered_digest(bundle, number)
    assert verify_files(tmp_path / "from/pets/1").version == 1


def test_another_contract_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "from", Sample(format="aoti"))
    put(tmp_path / "to")
    with pytest.raises(UsageError, match="format: onnx becomes aoti"):
        publish(tmp_path / "from", tmp_path / "to", renumber=True)
    assert version_numbers(tmp_path / "to/pets") == (1,)


@pytest.mark.parametrize("file", ["model.onnx", "evidence/parity.json", "manifest.json"])
def test_a_changed_file_is_not_sent(tmp_path: Path, file: str) -> None:
    path = put(tmp_path / "from").version.folder / file
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UsageError, match=re.escape(file)):
        publish(tmp_path / "from", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_changed_warmup_sample_is_not_sent(tmp_path: Path) -> None:
    model = put(tmp_path / "from").version.model_folder
    next((model / "warmup").iterdir()).write_bytes(b"other")
    with pytest.raises(UsageError, match="warm-up sample"):
        publish(tmp_path / "from", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_a_pull_refuses_a_changed_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = put(tmp_path / "from").version.folder / "model.onnx"
    path.write_bytes(b"weighty")
    with pytest.raises(UsageError, match=r"1/model.onnx .* is not what was published"):
        run_pull(PullRequest(source=str(tmp_path / "from"), reference="pets:1", repository=tmp_path / "to"))
    assert list((tmp_path / "to").iterdir()) == []


def test_an_unproven_version_is_neither_sent_nor_taken(tmp_path: Path) -> None:
    version = put(tmp_path / "from").version
    manifest = Manifest.read(version.manifest)
    verdicts = manifest.verdicts.model_copy(update={"parity": FAIL})
    manifest.model_copy(update={"verdicts": verdicts}).write(version.manifest)
    for carry in (publish, pull):
        with pytest.raises(UsageError, match="is not proven: parity: output scores is off by 3"):
            carry(tmp_path / "from", tmp_path / "to")
    assert not (tmp_path / "to/pets").exists()


def test_a_password_in_the_recorded_command_is_not_spread(tmp_path: Path) -> None:
    version = put(tmp_path / "from").version
    command = ("deployctl", "package", "https://user:hunter2@example.com/pets.pt")
    Manifest.read(version.manifest).model_copy(update={"command": command}).write(version.manifest)
    with pytest.raises(UsageError, match="holds a URL with a password") as caught:
        publish(tmp_path / "from", tmp_path / "to")
    assert "hunter2" not in str(caught.value)


def test_a_killed_pull_leaves_nothing_and_the_next_one_succeeds(tmp_path: Path) -> None:
    put_big(tmp_path / "from")
    die("pull", str(tmp_path / "from"), "pets:1", str(tmp_path / "to"), files=3)
    assert list((tmp_path / "to").iterdir()) == []
    assert run_pull(PullRequest(source=str(tmp_path / "from"), reference="pets", repository=tmp_path / "to")).new
    assert verify_files(tmp_path / "to/pets/1").version == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["from", "to"]


def test_publishers_side_by_side_get_different_numbers(tmp_path: Path) -> None:
    for index in range(3):
        put(tmp_path / f"from{index}", Sample(weights=f"weights {index}".encode()))
    ended = run_together(
        [
            ["publish", str(tmp_path / f"from{index}"), "pets", str(tmp_path / "to"), "--renumber", "--json"]
            for index in range(3)
        ]
    )
    assert [one.returncode for one in ended] == [0, 0, 0], [one.stderr for one in ended]
    numbers = [json.loads(one.stdout)["number"] for one in ended]
    assert sorted(numbers) == [1, 2, 3]
    for index, number in enumerate(numbers):
        assert verify_files(tmp_path / f"to/pets/{number}").version == number
        assert (tmp_path / f"to/pets/{number}/model.onnx").read_bytes() == f"weights {index}".encode()


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    put(tmp_path / "from")
    with pytest.raises(UsageError, match=r"no whole version pets:4[\s\S]*one of pets:1"):
        run_pull(PullRequest(source=str(tmp_path / "from"), reference="pets:4", repository=tmp_path / "to"))


def test_what_is_signed_comes_before_the_signature_and_that_before_its_record() -> None:
    """A reader between two of them finds no signature of what is not there yet."""
    names = (
        "signature-1.json",
        "signature-a/provenance.intoto.json",
        "slo-1.json",
        "diff-1.json",
        "signature-a/model.sig",
    )
    parts = [Part(path=f"attestations/digest/{name}", size=1, sha256=None) for name in names]
    found = [part.path.removeprefix("attestations/digest/") for part in signatures_last(parts)]
    assert found == [
        "diff-1.json",
        "slo-1.json",
        "signature-a/model.sig",
        "signature-a/provenance.intoto.json",
        "signature-1.json",
    ]
