"""A real S3: whole versions only, nothing sent twice, nothing overwritten, nothing taken that differs."""

import hashlib
import json
import re
import threading
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from deploy.errors import UsageError
from deploy.progress import Silent
from deploy.release.stores.folders import local_bundle
from deploy.release.stores.locations import parse_location
from deploy.release.stores.objects import ObjectStore
from deploy.release.stores.pull import PullRequest, run_pull
from deploy.repository.find import find_version
from deploy.repository.integrity import require_intact
from deploy.repository.manifest import Manifest, verify_files
from tests.release.stores.children import die, run_together
from tests.release.stores.packages import files_below, put_attested, put_big
from tests.release.stores.promises import publish, pull
from tests.release.stores.servers import S3Server, flip_byte, object_store
from tests.repository.samples import Sample, put


def objects(url: str) -> set[str]:
    store, root = object_store(url), url.removeprefix("s3://")
    return {path.removeprefix(f"{root}/") for path in store.client.find(root)}


def test_a_version_goes_there_and_back(tmp_path: Path, bucket: str) -> None:
    put_attested(tmp_path / "from")
    published = publish(tmp_path / "from", bucket)
    assert (published.new, published.sent.promoted) == (True, True)
    # Triton reads the same files there as in a folder, beside the claim.
    assert objects(bucket) == {*files_below(tmp_path / "from"), "pets/attestations/claims/1"}
    pulled = pull(bucket, tmp_path / "to", "pets")
    assert (pulled.new, pulled.digest) == (True, published.digest)
    assert files_below(tmp_path / "to") == files_below(tmp_path / "from")
    assert require_intact(find_version(tmp_path / "to", "pets")).version == 1


def test_promotion_is_first_or_asked_for(tmp_path: Path, bucket: str) -> None:
    for weights in (b"one", b"two", b"three"):
        put(tmp_path / "from", Sample(weights=weights))
    assert publish(tmp_path / "from", bucket, "pets:1").sent.promoted
    assert not publish(tmp_path / "from", bucket, "pets:2").sent.promoted
    assert object_store(bucket).promoted("pets") == 1
    assert publish(tmp_path / "from", bucket, "pets:3", promote=True).sent.promoted
    assert object_store(bucket).promoted("pets") == 3
    assert object_store(bucket).numbers("pets") == (1, 2, 3)


def test_what_a_killed_publisher_sent_is_not_sent_again(tmp_path: Path, bucket: str, s3: S3Server) -> None:
    put_big(tmp_path / "from")
    die("publish", str(tmp_path / "from"), "pets:1", bucket, files=3)
    there = objects(bucket)
    assert "pets/1/manifest.json" not in there
    assert object_store(bucket).numbers("pets") == ()
    with pytest.raises(UsageError, match="has no whole version pets:1"):
        pull(bucket, tmp_path / "to")
    sent = {path for path in there if path.startswith(("pets/1/", "pets/warmup/"))}
    assert len(sent) >= 3
    before = s3.puts(bucket.removeprefix("s3://"))
    published = publish(tmp_path / "from", bucket)
    again = s3.puts(bucket.removeprefix("s3://")) - before
    every = set(files_below(tmp_path / "from"))
    assert set(again) == every - sent
    assert set(again.values()) == {1}
    assert (published.sent.present, published.sent.files) == (len(sent), len(every - sent) - 2)
    pull(bucket, tmp_path / "to")
    assert files_below(tmp_path / "to") == files_below(tmp_path / "from")


def test_what_is_there_whole_is_not_sent_again(tmp_path: Path, bucket: str, s3: S3Server) -> None:
    put_attested(tmp_path / "from")
    publish(tmp_path / "from", bucket)
    before = s3.puts(bucket.removeprefix("s3://"))
    again = publish(tmp_path / "from", bucket)
    assert (again.new, again.sent.files, again.sent.promoted) == (False, 0, True)
    after = s3.puts(bucket.removeprefix("s3://")) - before
    assert set(after) <= {"pets/1/manifest.json"}, "a conditional write that the store refuses, at most"


def test_an_object_of_the_right_size_and_other_bytes_is_sent_again(tmp_path: Path, bucket: str) -> None:
    put_big(tmp_path / "from")
    die("publish", str(tmp_path / "from"), "pets:1", bucket, files=3)
    store, there = object_store(bucket), sorted(objects(bucket))
    victim = next(path for path in there if path.startswith("pets/1/evidence/samples"))
    flip_byte(store, f"{store.location.root}/{victim}")
    publish(tmp_path / "from", bucket)
    pull(bucket, tmp_path / "to")
    assert files_below(tmp_path / "to") == files_below(tmp_path / "from")


def test_a_tampered_byte_is_refused_and_the_file_named(tmp_path: Path, bucket: str) -> None:
    put(tmp_path / "from")
    publish(tmp_path / "from", bucket)
    store = object_store(bucket)
    for path in ("1/model.onnx", "1/config.pbtxt", "1/evidence/parity.json"):
        whole = f"{store.location.root}/pets/{path}"
        kept = store.client.cat_file(whole)
        flip_byte(store, whole)
        with pytest.raises(UsageError, match=rf"{re.escape(path)} in {re.escape(bucket)} is not what was published"):
            pull(bucket, tmp_path / "to")
        assert list((tmp_path / "to").iterdir()) == []
        store.client.pipe_file(whole, kept)
    assert pull(bucket, tmp_path / "to").new


def test_a_manifest_that_was_edited_is_refused(tmp_path: Path, bucket: str) -> None:
    put(tmp_path / "from")
    digest = publish(tmp_path / "from", bucket).digest
    store = object_store(bucket)
    path = f"{store.location.root}/pets/1/manifest.json"
    edited = store.client.cat_file(path).replace(b'"parameters": 11', b'"parameters": 12')
    store.client.pipe_file(path, edited)
    with pytest.raises(UsageError, match=rf"1/manifest.json in .* is not what was published[\s\S]*{digest}"):
        pull(bucket, tmp_path / "to")
    # Who edits the claim too is found out by the digest that the publisher was told.
    claim = f"{store.location.root}/pets/attestations/claims/1"
    store.client.pipe_file(claim, hashlib.sha256(edited).hexdigest().encode())
    request = PullRequest(source=bucket, reference="pets:1", repository=tmp_path / "to", digest=digest)
    with pytest.raises(UsageError, match="is not the version that was asked for"):
        run_pull(request)
    assert not (tmp_path / "to/pets").exists()


def test_a_tampered_attestation_is_refused(tmp_path: Path, bucket: str) -> None:
    put_attested(tmp_path / "from")
    publish(tmp_path / "from", bucket)
    store = object_store(bucket)
    path = next(path for path in store.client.find(store.location.root) if path.endswith("model.sig"))
    # As the store's own bytes go bad: what was noted beside the object stays.
    store.client.pipe_file(path, b"other!", Metadata=store.client.metadata(path))
    with pytest.raises(UsageError, match=r"model.sig in .* is not what was published"):
        pull(bucket, tmp_path / "to")


def test_a_file_that_is_not_in_the_manifest_stops_the_publisher(tmp_path: Path, bucket: str) -> None:
    put(tmp_path / "from")
    store = object_store(bucket)
    store.client.pipe_file(f"{store.location.root}/pets/1/libtriton_evil.so", b"elf")
    with pytest.raises(UsageError, match=r"not in the manifest: 1/libtriton_evil.so"):
        publish(tmp_path / "from", bucket)
    assert store.numbers("pets") == ()


def test_a_taken_number_is_refused_and_renumbering_is_the_way_out(tmp_path: Path, bucket: str) -> None:
    put(tmp_path / "theirs", Sample(weights=b"theirs"))
    put(tmp_path / "ours", Sample(weights=b"ours"))
    publish(tmp_path / "theirs", bucket)
    with pytest.raises(UsageError, match=r"has another pets:1[\s\S]*--renumber"):
        publish(tmp_path / "ours", bucket)
    renumbered = publish(tmp_path / "ours", bucket, renumber=True)
    assert (renumbered.number, renumbered.renumbered_from) == (2, 1)
    assert publish(tmp_path / "ours", bucket, renumber=True).new is False
    pull(bucket, tmp_path / "to", "pets:2")
    assert (tmp_path / "to/pets/2/model.onnx").read_bytes() == b"ours"


def test_a_number_that_a_dead_publisher_claimed_is_left_to_it(tmp_path: Path, bucket: str) -> None:
    put_big(tmp_path / "dead", b"dead")
    put(tmp_path / "ours")
    die("publish", str(tmp_path / "dead"), "pets:1", bucket, files=1)
    with pytest.raises(UsageError, match=r"claimed by another version[\s\S]*attestations/claims/1"):
        publish(tmp_path / "ours", bucket)
    assert publish(tmp_path / "ours", bucket, renumber=True).number == 2
    assert publish(tmp_path / "dead", bucket).number == 1
    assert object_store(bucket).numbers("pets") == (1, 2)


@pytest.mark.parametrize("renumber", [True, False])
def test_publishers_side_by_side_never_share_a_number(tmp_path: Path, bucket: str, *, renumber: bool) -> None:
    option = ["--renumber"] if renumber else []
    for index in range(3):
        put(tmp_path / f"from{index}", Sample(weights=f"weights {index}".encode()))
    ended = run_together(
        [["publish", str(tmp_path / f"from{index}"), "pets", bucket, "--json", *option] for index in range(3)]
    )
    done = {index: json.loads(one.stdout)["number"] for index, one in enumerate(ended) if one.returncode == 0}
    assert sorted(done.values()) == ([1, 2, 3] if renumber else [1]), [one.stderr for one in ended]
    assert {one.returncode for one in ended} <= {0, 2}
    for index, number in done.items():
        pull(bucket, tmp_path / "to", f"pets:{number}")
        assert (tmp_path / f"to/pets/{number}/model.onnx").read_bytes() == f"weights {index}".encode()


def test_a_reader_that_polls_sees_whole_versions_only(tmp_path: Path, bucket: str) -> None:
    for index in range(3):
        put_big(tmp_path / "from", f"weights{index}".encode())
    store, done, seen = object_store(bucket), threading.Event(), set()
    looks = 0

    def writer() -> None:
        try:
            for number in (1, 2, 3):
                publish(tmp_path / "from", bucket, f"pets:{number}")
        finally:
            done.set()

    thread = threading.Thread(target=writer)
    thread.start()
    while not done.is_set():
        looks += 1
        for number in store.numbers("pets"):
            data = store.marker("pets", number)
            assert data is not None
            manifest = Manifest.model_validate_json(data)
            root = f"{store.location.root}/pets/{number}"
            sizes = {path: entry["size"] for path, entry in store.client.find(root, detail=True).items()}
            assert {f"{root}/{entry.path}": entry.size for entry in manifest.files}.items() <= sizes.items()
            seen.add(number)
    thread.join()
    assert looks > 5
    assert seen >= {1, 2}


def test_a_killed_pull_leaves_nothing(tmp_path: Path, bucket: str) -> None:
    put_big(tmp_path / "from")
    publish(tmp_path / "from", bucket)
    die("pull", bucket, "pets:1", str(tmp_path / "to"), files=3)
    assert list((tmp_path / "to").iterdir()) == []
    pull(bucket, tmp_path / "to")
    assert verify_files(tmp_path / "to/pets/1").version == 1


class Careless(MemoryFileSystem):  # type: ignore[misc]
    """A store that overwrites where it is asked to create, as older ones did."""

    cachable = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: object) -> None:
        super().pipe_file(path, value)


def test_a_store_without_conditional_writes_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "from")
    store = ObjectStore(location=parse_location("s3://careless/models"), client=Careless())
    with pytest.raises(UsageError, match="ignores conditional writes"):
        store.send(local_bundle(tmp_path / "from", "pets"), promote=False, progress=Silent())
    assert store.numbers("pets") == ()
