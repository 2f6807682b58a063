"""What is said of a server that takes up neither the version that was promoted nor the one before."""

import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deploy.errors import DeployError, UnfinishedError, UsageError
from deploy.release.rollout import Rollout, ServerAddress, connected, roll_out
from deploy.repository.layout import Version, promoted_version
from deploy.repository.promotion import promote
from deploy.serve.client import Client, Protocol
from deploy.serve.reload import NotTakenUp, TakenUp
from tests.repository.samples import Sample, put

CLIENT = cast(Client, SimpleNamespace(address="localhost:8001"))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_hangs_is_given_up_before_anything_is_promoted(protocol: Protocol) -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        began = time.monotonic()
        address = f"127.0.0.1:{frozen.getsockname()[1]}"
        with (
            pytest.raises(UnfinishedError, match="no server answers"),
            connected(ServerAddress(address=address, protocol=protocol, seconds=1.0)),
        ):
            pass
        assert time.monotonic() - began < 20


def refuse(repository: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> Rollout:
    """What comes of promoting version 2 where the server takes up no version but the first."""

    def take_up(client: Client, version: Version, *more: Any, **named: Any) -> TakenUp:
        if version.number == 1:
            return TakenUp(seconds=0.0, told=True)
        raise error or NotTakenUp(f"could not load {version}")

    monkeypatch.setattr("deploy.release.rollout.take_up", take_up)
    return roll_out(CLIENT, promote(repository, "pets", 2), seconds=1.0)


def test_over_a_broken_config_it_goes_back_to_the_version_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path)
    put(tmp_path, Sample(weights=b"finer"))
    (tmp_path / "pets/config.pbtxt").write_text("nonsense {")
    found = refuse(tmp_path, monkeypatch)
    assert found.undone is not None and promoted_version(tmp_path / "pets") == 1


def test_what_was_promoted_before_too_is_not_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path)
    put(tmp_path, Sample(weights=b"finer"))
    promote(tmp_path, "pets", 2)
    config = tmp_path / "pets/config.pbtxt"
    config.write_text(f"{config.read_text()} nonsense {{")
    found = refuse(tmp_path, monkeypatch)
    assert found.undone is None and promoted_version(tmp_path / "pets") == 2
    assert "it was promoted before too" in found.judgement.reason


def test_an_undoing_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path)
    put(tmp_path, Sample(weights=b"finer"))
    promote(tmp_path, "pets", 2)
    put(tmp_path, Sample(weights=b"finest"))
    promote(tmp_path, "pets", 1)
    shutil.rmtree(tmp_path / "pets/1")
    found = refuse(tmp_path, monkeypatch)
    assert found.undone is None and promoted_version(tmp_path / "pets") == 2
    assert "THE PROMOTION COULD NOT BE UNDONE" in found.judgement.reason


@pytest.mark.parametrize("error", [UnfinishedError("its evidence cannot be read"), UsageError("no rows")])
def test_any_failure_after_the_promotion_undoes_it(
    error: DeployError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path)
    put(tmp_path, Sample(weights=b"finer"))
    found = refuse(tmp_path, monkeypatch, error)
    assert found.undone is not None and promoted_version(tmp_path / "pets") == 1
    assert found.judgement.reason.startswith(error.found)


def test_an_interruption_says_that_the_promotion_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path)
    put(tmp_path, Sample(weights=b"finer"))
    with pytest.raises(KeyboardInterrupt, match=r"pets:2 is promoted in .*nothing was undone"):
        refuse(tmp_path, monkeypatch, KeyboardInterrupt())
    assert promoted_version(tmp_path / "pets") == 2


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_server_that_does_not_go_back_is_said_to_need_care(
    comes_back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_up(client: Client, version: Version, *more: Any, **named: Any) -> TakenUp:
        if version.number == 2 or not comes_back:
            raise NotTakenUp(f"could not load {version}")
        return TakenUp(seconds=0.0, told=True)

    put(tmp_path)
    put(tmp_path, Sample(weights=b"finer"))
    promoted = promote(tmp_path, "pets", 2)
    monkeypatch.setattr("deploy.release.rollout.take_up", take_up)

    found = roll_out(CLIENT, promoted, seconds=1.0)

    assert not found.judgement.passed
    assert found.undone is not None and promoted_version(tmp_path / "pets") == 1
    assert found.judgement.reason.startswith("could not load pets:2")
    assert ("NOR DOES IT ANSWER AS BEFORE" in found.judgement.reason) is not comes_back
    assert ("could not load pets:1" in found.judgement.reason) is not comes_back
