"""An ensemble travels with the versions that it runs, and never is served where one of them is not."""

from pathlib import Path

import pytest

from deploy.errors import UsageError
from deploy.release.stores.publish import PublishRequest, run_publish
from deploy.release.stores.pull import PullRequest, run_pull
from deploy.repository.find import find_version
from deploy.repository.integrity import require_intact
from deploy.repository.layout import served_versions
from tests.repository.ensembles import STEPS, WHOLE, put_ensemble
from tests.repository.samples import put


def send(repository: Path, destination: object, reference: str, **options: bool) -> tuple[str, ...]:
    request = PublishRequest(repository=repository, reference=reference, destination=str(destination), **options)
    return run_publish(request).steps


def served(repository: Path) -> list[tuple[int, ...]]:
    return [served_versions(repository / name) for name in (*STEPS, WHOLE)]


def test_it_comes_with_its_steps_by_folder_and_object_store(tmp_path: Path, bucket: str) -> None:
    put_ensemble(tmp_path / "from")
    assert send(tmp_path / "from", tmp_path / "to", WHOLE) == ("pets:1", "ranks:1")
    assert send(tmp_path / "from", bucket, WHOLE) == ("pets:1", "ranks:1")
    pulled = run_pull(PullRequest(source=bucket, reference=WHOLE, repository=tmp_path / "back"))
    assert pulled.steps == ("pets:1", "ranks:1")
    for repository in (tmp_path / "to", tmp_path / "back"):
        assert require_intact(find_version(repository, WHOLE)).version == 1
        assert served(repository) == [(1,), (1,), (1,)]


def test_a_later_one_waits_with_its_steps_and_is_promoted_with_them(tmp_path: Path) -> None:
    for _ in range(2):
        put_ensemble(tmp_path / "from")
    send(tmp_path / "from", tmp_path / "to", f"{WHOLE}:1")
    send(tmp_path / "from", tmp_path / "to", f"{WHOLE}:2")
    assert served(tmp_path / "to") == [(1,), (1,), (1,)]
    send(tmp_path / "from", tmp_path / "to", f"{WHOLE}:2", promote=True)
    assert served(tmp_path / "to") == [(2,), (2,), (2,)]


def test_it_is_not_served_where_a_step_is_not(tmp_path: Path, bucket: str) -> None:
    put(tmp_path / "from")
    put_ensemble(tmp_path / "from")
    for destination in (tmp_path / "to", bucket):
        send(tmp_path / "from", destination, "pets:1")
        with pytest.raises(UsageError, match=r"pets_image:1 would be served in .* runs pets:2, where version 1 is"):
            send(tmp_path / "from", destination, f"{WHOLE}:1")
    assert served(tmp_path / "to") == [(1,), (), ()]
    with pytest.raises(UsageError, match=r"pets_image:1 would be served in .* runs pets:2, where version 1 is"):
        run_pull(PullRequest(source=str(tmp_path / "from"), reference=WHOLE, repository=tmp_path / "to"))


def test_in_an_object_store_it_is_not_promoted_over_another_step(tmp_path: Path, bucket: str) -> None:
    for _ in range(2):
        put_ensemble(tmp_path / "from")
    send(tmp_path / "from", bucket, f"{WHOLE}:1")
    with pytest.raises(UsageError, match="leave --promote out, and promote in a folder"):
        send(tmp_path / "from", bucket, f"{WHOLE}:2", promote=True)
    assert send(tmp_path / "from", bucket, f"{WHOLE}:2") == ("pets:2", "ranks:2")


def test_it_keeps_its_number(tmp_path: Path) -> None:
    put_ensemble(tmp_path / "from")
    with pytest.raises(UsageError, match="an ensemble, which runs its steps by number"):
        send(tmp_path / "from", tmp_path / "to", WHOLE, renumber=True)
