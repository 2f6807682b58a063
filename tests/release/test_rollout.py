"""What is said of a server that takes up neither the version that was promoted nor the one before."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deploy.release.rollout import roll_out
from deploy.repository.layout import Version, promoted_version
from deploy.repository.promotion import promote
from deploy.serve.client import Client
from deploy.serve.reload import NotTakenUp, TakenUp
from tests.repository.samples import Sample, put

CLIENT = cast(Client, SimpleNamespace(address="localhost:8001"))


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
