"""What every object store promises alike, each promise to be asked of the URL of an empty place in one."""

from pathlib import Path

import pytest

from deploy.errors import UsageError
from deploy.release.stores.publish import Published, PublishRequest, run_publish
from deploy.release.stores.pull import Pulled, PullRequest, run_pull
from deploy.repository.find import find_version
from deploy.repository.integrity import require_intact
from tests.release.stores.packages import files_below, put_attested
from tests.release.stores.servers import flip_byte, object_store
from tests.repository.samples import Sample, put


def publish(repository: Path, url: str, reference: str = "pets:1", **options: bool) -> Published:
    return run_publish(PublishRequest(repository=repository, reference=reference, destination=url, **options))


def pull(url: str, repository: Path, reference: str = "pets:1") -> Pulled:
    return run_pull(PullRequest(source=url, reference=reference, repository=repository))


def assert_goes_there_and_back(folder: Path, url: str) -> None:
    """A version, with what is attested of it."""
    put_attested(folder / "from")
    published = publish(folder / "from", url, "pets")
    assert (published.new, published.sent.promoted) == (True, True)
    again = publish(folder / "from", url, "pets")
    assert (again.new, again.sent.files) == (False, 0)
    pulled = pull(url, folder / "to", "pets")
    assert (pulled.new, pulled.digest) == (True, published.digest)
    assert files_below(folder / "to") == files_below(folder / "from")
    assert require_intact(find_version(folder / "to", "pets")).version == 1


def assert_promotion_waits_and_no_number_is_taken_twice(folder: Path, url: str) -> None:
    """The first version is promoted where it arrives, later ones where that is asked for."""
    for weights in (b"one", b"two"):
        put(folder / "from", Sample(weights=weights))
    publish(folder / "from", url, "pets:1")
    assert not publish(folder / "from", url, "pets:2").sent.promoted
    assert object_store(url).promoted("pets") == 1
    assert publish(folder / "from", url, "pets:2", promote=True).sent.promoted
    assert object_store(url).promoted("pets") == 2
    put(folder / "other", Sample(weights=b"another"))
    with pytest.raises(UsageError, match="has another pets:1"):
        publish(folder / "other", url, "pets:1")
    assert publish(folder / "other", url, "pets:1", renumber=True).number == 3


def assert_what_changed_there_is_not_taken(folder: Path, url: str) -> None:
    """One byte of an object, and nothing arrives."""
    put(folder / "from")
    publish(folder / "from", url, "pets")
    scheme, _, path = url.partition("://")
    flip_byte(object_store(url), f"{path}/pets/1/model.onnx")
    with pytest.raises(UsageError, match=rf"1/model\.onnx in {scheme}://.* is not what was published"):
        pull(url, folder / "to", "pets")
    assert not (folder / "to/pets").exists()
