"""A real registry: artifacts that plain ORAS reads, blobs sent once, tags that are never moved to another version."""

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import oras.client
import pytest

from deploy.errors import UsageError
from deploy.release.stores.locations import parse_location
from deploy.release.stores.oci import ARTIFACT_TYPE, OciStore
from deploy.release.stores.publish import PublishRequest, run_publish
from deploy.release.stores.registry import open_registry
from deploy.repository.find import find_version
from deploy.repository.integrity import require_intact
from deploy.repository.manifest import Manifest, verify_files, version_digest
from tests.release.stores.children import die
from tests.release.stores.packages import BIG, files_below, put_attested, put_big
from tests.release.stores.promises import publish, pull
from tests.release.stores.servers import RegistryServer, registry_server
from tests.repository.samples import Sample, put

# The user `deployer` with the password `hunter2`, as `htpasswd -B` writes it.
USERS = "deployer:$2b$04$ug8OWcbUgQe1jCCdDQE1iOBrSXSwbOsVqZ9zr4xUJTwG.DOqpUkry\n"


def test_a_version_goes_there_and_back(tmp_path: Path, place: str) -> None:
    put_attested(tmp_path / "from")
    published = publish(tmp_path / "from", place)
    assert (published.new, published.sent.promoted) == (True, True)
    pulled = pull(place, tmp_path / "to", "pets")
    assert (pulled.new, pulled.digest) == (True, published.digest)
    assert files_below(tmp_path / "to") == files_below(tmp_path / "from")
    assert require_intact(find_version(tmp_path / "to", "pets")).version == 1


def test_a_tag_of_another_tool_where_ours_would_be_stays_unless_asked(tmp_path: Path, place: str) -> None:
    registry = open_registry(parse_location(place), "pets")
    kind = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": []}).encode()
    registry._ask("PUT", "manifests/promoted", fine=(201,), data=index, headers={"Content-Type": kind})
    put(tmp_path / "from")
    assert not publish(tmp_path / "from", place).sent.promoted
    assert OciStore(location=parse_location(place)).promoted("pets") is None
    kept = registry._ask("GET", "manifests/promoted", fine=(200,), headers={"Accept": kind})
    assert kept.content == index
    assert publish(tmp_path / "from", place, promote=True).sent.promoted
    assert OciStore(location=parse_location(place)).promoted("pets") == 1


def test_plain_oras_reads_what_was_published(tmp_path: Path, place: str) -> None:
    put(tmp_path / "from")
    publish(tmp_path / "from", place)
    target = f"{place.removeprefix('oci://')}/pets:1"
    client = oras.client.OrasClient(insecure=True)
    assert client.get_manifest(target)["artifactType"] == ARTIFACT_TYPE
    client.pull(target=target, outdir=str(tmp_path / "plain"))
    expected = {path: data for path, data in files_below(tmp_path / "from").items() if path != "pets/config.pbtxt"}
    assert files_below(tmp_path / "plain") == expected


def test_what_a_killed_publisher_sent_is_not_sent_again(tmp_path: Path, place: str, registry: RegistryServer) -> None:
    version = put_big(tmp_path / "from", place.encode())
    before = registry.uploads()
    die("publish", str(tmp_path / "from"), "pets:1", place, files=3)
    # What the dead one had sent to its last byte is still taken.
    time.sleep(0.5)
    sent = registry.uploads() - before
    assert sent >= 3
    store = OciStore(location=parse_location(place))
    assert (store.numbers("pets"), store.promoted("pets")) == ((), None)
    with pytest.raises(UsageError, match="has no whole version pets:1"):
        pull(place, tmp_path / "to")
    before = registry.uploads()
    published = publish(tmp_path / "from", place)
    blobs = {entry.sha256 for entry in verify_files(version.folder).files}
    assert published.sent.present >= 3
    # Beside the files: the sample, the manifest and the empty config.
    assert registry.uploads() - before + sent == len(blobs) + 3
    assert len(blobs) > BIG
    before = registry.uploads()
    assert publish(tmp_path / "from", place).new is False
    assert registry.uploads() == before
    pull(place, tmp_path / "to")
    assert files_below(tmp_path / "to") == files_below(tmp_path / "from")


def test_a_tampered_byte_is_refused_and_the_file_named(tmp_path: Path, place: str, registry: RegistryServer) -> None:
    version = put(tmp_path / "from", Sample(weights=place.encode())).version
    publish(tmp_path / "from", place)
    digests = {entry.path: entry.sha256 for entry in verify_files(version.folder).files}
    digests["manifest.json"] = version_digest(version.folder)
    for path in ("model.onnx", "manifest.json"):
        blob = registry.blob(digests[path])
        kept = blob.read_bytes()
        blob.write_bytes(kept[:-1] + b"!")
        with pytest.raises(UsageError, match=rf"1/{re.escape(path)} in .* is not what was published"):
            pull(place, tmp_path / "to")
        assert not (tmp_path / "to/pets").exists()
        blob.write_bytes(kept)
    assert pull(place, tmp_path / "to").new


def test_a_taken_number_is_refused_and_renumbering_is_the_way_out(tmp_path: Path, place: str) -> None:
    put(tmp_path / "theirs", Sample(weights=b"theirs"))
    put(tmp_path / "ours", Sample(weights=b"ours"))
    publish(tmp_path / "theirs", place)
    with pytest.raises(UsageError, match=r"has another pets:1[\s\S]*--renumber"):
        publish(tmp_path / "ours", place)
    renumbered = publish(tmp_path / "ours", place, renumber=True, promote=True)
    assert (renumbered.number, renumbered.sent.promoted) == (2, True)
    pull(place, tmp_path / "to", "pets")
    assert (tmp_path / "to/pets/2/model.onnx").read_bytes() == b"ours"


class Meanwhile:
    """A progress that does something else once, when the first big file is sent."""

    def __init__(self, do: Callable[[], object]) -> None:
        self.do, self.done = do, False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        yield

    def note(self, text: str) -> None:
        if text.startswith("sent ") and not self.done:
            self.done = True
            self.do()


@pytest.mark.slow
def test_a_number_that_is_being_sent_is_left_to_whoever_claimed_it(tmp_path: Path, place: str) -> None:
    put(tmp_path / "theirs", Sample(weights=b"theirs"))
    put_big(tmp_path / "ours", b"ours")

    def publish_theirs() -> None:
        with pytest.raises(UsageError, match=r"pets:1 in .* is claimed by another version[\s\S]*the tag 1-claim-"):
            publish(tmp_path / "theirs", place)
        assert publish(tmp_path / "theirs", place, renumber=True).number == 2

    request = PublishRequest(repository=tmp_path / "ours", reference="pets:1", destination=place)
    assert run_publish(request, progress=Meanwhile(publish_theirs)).number == 1
    for number, weights in ((1, b"oursours"), (2, b"theirs")):
        pull(place, tmp_path / "to", f"pets:{number}")
        assert (tmp_path / f"to/pets/{number}/model.onnx").read_bytes()[:8] == weights


def test_a_tag_that_somebody_writes_without_a_claim_is_not_moved(tmp_path: Path, place: str) -> None:
    for weights in (b"one", b"two"):
        put(tmp_path / "theirs", Sample(weights=weights))
    put_big(tmp_path / "ours", b"ours")
    publish(tmp_path / "theirs", place, "pets:2")
    registry = open_registry(parse_location(place), "pets")

    def tag_theirs() -> None:
        registry.put_manifest("1", json.dumps(registry.manifest("2")).encode())

    request = PublishRequest(repository=tmp_path / "ours", reference="pets:1", destination=place)
    with pytest.raises(UsageError, match="has another pets:1"):
        run_publish(request, progress=Meanwhile(tag_theirs))
    pull(place, tmp_path / "to", "pets:2")
    assert (tmp_path / "to/pets/2/model.onnx").read_bytes() == b"two"


def test_a_tag_that_is_listed_before_it_marks_anything_is_no_version(
    tmp_path: Path, place: str, registry: RegistryServer
) -> None:
    """A registry on a disk makes the tag's folder first, then the link in it: who lists in between sees it."""
    put(tmp_path / "from")
    publish(tmp_path / "from", place)
    tags = registry.folder / f"docker/registry/v2/repositories/{place.rpartition('/')[2]}/pets/_manifests/tags"
    (tags / "2/index/sha256").mkdir(parents=True)
    store = OciStore(location=parse_location(place))
    assert "2" in open_registry(parse_location(place), "pets").tags()
    assert store.numbers("pets") == (1,)
    with pytest.raises(UsageError, match="no whole version pets:2"):
        pull(place, tmp_path / "to", "pets:2")


@pytest.mark.slow
def test_readers_that_poll_see_whole_versions_only(tmp_path: Path, place: str) -> None:
    """One asks the registry, one looks into the folder that versions are pulled into."""
    for index in range(3):
        put_big(tmp_path / "from", f"weights{index}".encode())
    store, done, seen, looks = OciStore(location=parse_location(place)), threading.Event(), set(), 0

    def writer() -> None:
        try:
            for number in (1, 2, 3):
                publish(tmp_path / "from", place, f"pets:{number}")
                pull(place, tmp_path / "to", f"pets:{number}")
        finally:
            done.set()

    thread = threading.Thread(target=writer)
    thread.start()
    while not done.is_set():
        looks += 1
        for number in store.numbers("pets"):
            data = store.marker("pets", number)
            assert data is not None
            registry = open_registry(parse_location(place), "pets")
            files = Manifest.model_validate_json(data).files
            assert all(registry.blob_exists(f"sha256:{entry.sha256}") for entry in files)
            seen.add(("registry", number))
        for folder in sorted((tmp_path / "to/pets").glob("[0-9]*")):
            seen.add(("folder", verify_files(folder).version))
    thread.join()
    assert looks > 5
    assert seen >= {("registry", 1), ("registry", 2), ("folder", 1), ("folder", 2)}


def test_what_is_attested_later_joins_what_was(tmp_path: Path, place: str) -> None:
    version = put_attested(tmp_path / "from")
    publish(tmp_path / "from", place)
    folder = tmp_path / f"from/pets/attestations/{version_digest(version.folder)}"
    (folder / "diff-20261101T000000Z.json").write_text("{}")
    assert publish(tmp_path / "from", place).sent.files == 1
    pull(place, tmp_path / "to")
    assert files_below(tmp_path / "to") == files_below(tmp_path / "from")


def test_a_name_that_no_registry_takes_is_refused(tmp_path: Path, place: str) -> None:
    put(tmp_path / "from", Sample(name="Pets"))
    with pytest.raises(UsageError, match=r"cannot be a repository's name[\s\S]*lower-case"):
        publish(tmp_path / "from", place, "Pets:1")


def test_a_registry_with_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "from")
    monkeypatch.setenv("HOME", str(tmp_path))
    with registry_server(tmp_path, users=USERS) as server:
        with pytest.raises(UsageError, match=r"refused the credentials[\s\S]*docker login"):
            publish(tmp_path / "from", f"{server.url}/denied")
        login = {"auth": base64.b64encode(b"deployer:hunter2").decode()}
        (tmp_path / ".docker").mkdir()
        (tmp_path / ".docker/config.json").write_text(json.dumps({"auths": {f"127.0.0.1:{server.port}": login}}))
        assert publish(tmp_path / "from", f"{server.url}/models").new
        pull(f"{server.url}/models", tmp_path / "to")
    assert verify_files(tmp_path / "to/pets/1").version == 1
    assert "hunter2" not in server.log.read_text()
