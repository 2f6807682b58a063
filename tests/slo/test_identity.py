"""A verdict is kept beside a version only where the server answers as that version does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from deploy.errors import UnfinishedError
from deploy.repository.layout import Version
from deploy.serve.client import ModelAddress, RequestFailed
from deploy.slo.identity import check_same
from deploy.slo.rates import find_rate
from deploy.slo.records import Bound
from deploy.slo.request import SloRequest
from deploy.slo.run import check_slo
from tests.repository.samples import Sample
from tests.serve.tiny import Linear
from tests.tune.beds import put_version


@dataclass
class Served:
    """A server of the tiny model with these weights; of none where it refuses."""

    model: Linear | None
    asked: int = 0
    protocol: str = "grpc"

    def __call__(self, *_: Any, **__: Any) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def infer(self, model: ModelAddress, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.asked += 1
        if self.model is None:
            raise RequestFailed("no such model")
        return {"OUTPUT__0": self.model.outputs(inputs["INPUT__0"])}


@pytest.fixture
def version(tmp_path: Path) -> Version:
    return put_version(tmp_path / "models")


def asked(version: Version) -> SloRequest:
    bound = Bound(kind="latency", q=0.99, limit=15.0)
    where = {"reference": version.name, "repository": version.repository, "url": "127.0.0.1:1"}
    return SloRequest(bounds=(bound,), rate=10.0, **where)  # type: ignore[arg-type]


def test_the_version_itself_is_taken_for_it_after_a_few_questions(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(Linear())
    monkeypatch.setattr("deploy.slo.identity.Client", served)
    check_same(asked(version))
    assert 1 <= served.asked <= 3


@pytest.mark.parametrize("check", [check_slo, find_rate])
def test_other_weights_under_its_name_and_number_earn_it_nothing(
    check: Any, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.slo.identity.Client", Served(Linear(seed=9)))
    with pytest.raises(UnfinishedError, match="does not answer as pets:1 did when it was proven"):
        check(asked(version))


def test_who_does_not_answer_is_the_load_runs_to_judge(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(None)
    monkeypatch.setattr("deploy.slo.identity.Client", served)
    check_same(asked(version))
    assert served.asked == 1


def test_what_was_never_held_to_its_rows_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = Served(Linear(seed=9))
    monkeypatch.setattr("deploy.slo.identity.Client", served)
    check_same(asked(put_version(tmp_path / "unproven", proven=False)))
    check_same(asked(put_version(tmp_path / "unsafe", Sample(unsafe_accepted=("parity",)))))
    assert served.asked == 0
