"""Of versions that want one number in a registry at most one gets it, whoever comes first and whoever dies."""

import json
import threading
from pathlib import Path

import pytest

from deploy.errors import UsageError
from deploy.files import sha256_bytes
from deploy.release.stores.claims import Claims, claim
from deploy.release.stores.locations import parse_location
from deploy.release.stores.oci import CLAIM_TYPE, OciStore, _document, _send_config
from deploy.release.stores.registry import Registry, open_registry
from tests.release.stores.children import die, run_together
from tests.release.stores.packages import put_big
from tests.release.stores.promises import publish, pull
from tests.repository.samples import Sample, put

SMALL, LARGE = "1" * 64, "a" * 64
DOCUMENT = _document(CLAIM_TYPE, [], {})


@pytest.fixture
def registry_(place: str) -> Registry:
    found = open_registry(parse_location(place), "pets")
    _send_config(found)
    return found


def yielded(registry: Registry) -> set[str]:
    return {tag.split("-")[2][:1] for tag in registry.tags() if "-yield-" in tag}


def test_who_sees_nobody_has_the_number_and_may_come_again(registry_: Registry) -> None:
    assert claim(registry_, 1, LARGE, DOCUMENT) is None
    assert claim(registry_, 1, LARGE, DOCUMENT) is None
    assert claim(registry_, 11, SMALL, DOCUMENT) is None
    assert yielded(registry_) == set()


@pytest.mark.parametrize(("first", "second"), [(SMALL, LARGE), pytest.param(LARGE, SMALL, marks=pytest.mark.slow)])
def test_who_comes_later_yields_whoever_is_smaller(registry_: Registry, first: str, second: str) -> None:
    assert claim(registry_, 1, first, DOCUMENT) is None
    assert str(claim(registry_, 1, second, DOCUMENT)).startswith(f"1-claim-{first[:32]}-")
    assert yielded(registry_) == {second[:1]}
    assert claim(registry_, 1, first, DOCUMENT) is None


def test_of_two_that_see_each_other_the_smaller_has_it(registry_: Registry) -> None:
    """The larger one's claim is there, and it has yielded: it saw the smaller one's."""
    registry_.put_manifest(f"1-claim-{LARGE[:32]}-00000000", DOCUMENT)
    registry_.put_manifest(f"1-yield-{LARGE[:32]}-00000000", DOCUMENT)
    assert claim(registry_, 1, SMALL, DOCUMENT) is None
    assert len(Claims.read(registry_, 1).wanted) == 1


@pytest.mark.slow
def test_a_blob_that_is_there_a_moment_later_is_waited_for(place: str, registry_: Registry) -> None:
    """docker-registry does not know a blob for the moment in which another publisher sends the same one."""
    data = place.encode()
    layer = {"mediaType": "application/octet-stream", "digest": f"sha256:{sha256_bytes(data)}", "size": len(data)}
    document = _document(CLAIM_TYPE, [layer], {})

    def send() -> None:
        open_registry(parse_location(place), "pets").upload_bytes(data, f"sha256:{sha256_bytes(data)}")

    with pytest.raises(UsageError, match="status 400"):
        registry_.put_manifest("late", document)
    timer = threading.Timer(0.3, send)
    timer.start()
    registry_.put_manifest("late", document)
    timer.join()
    assert registry_.manifest("late") is not None


@pytest.mark.slow
def test_a_number_that_a_dead_publisher_claimed_is_left_to_it(tmp_path: Path, place: str) -> None:
    put_big(tmp_path / "dead", b"dead")
    put(tmp_path / "ours")
    die("publish", str(tmp_path / "dead"), "pets:1", place, files=1)
    assert publish(tmp_path / "ours", place, renumber=True).number == 2
    assert publish(tmp_path / "dead", place).number == 1
    assert OciStore(location=parse_location(place)).numbers("pets") == (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("renumber", [True, False])
def test_publishers_side_by_side_never_share_a_number(tmp_path: Path, place: str, *, renumber: bool) -> None:
    option = ["--renumber"] if renumber else []
    for index in range(4):
        put(tmp_path / f"from{index}", Sample(weights=f"weights {index}".encode()))
    ended = run_together(
        [["publish", str(tmp_path / f"from{index}"), "pets", place, "--json", *option] for index in range(4)]
    )
    done = {index: json.loads(one.stdout)["number"] for index, one in enumerate(ended) if one.returncode == 0}
    assert len(done) == (4 if renumber else 1), [one.stderr for one in ended]
    assert len(set(done.values())) == len(done)
    assert {one.returncode for one in ended} <= {0, 2}
    for index, number in done.items():
        pull(place, tmp_path / "to", f"pets:{number}")
        assert (tmp_path / f"to/pets/{number}/model.onnx").read_bytes() == f"weights {index}".encode()
