"""A real tritonserver under load while versions are swapped: nothing is lost, and the counts would show it."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from benchmarks.swap import RESULTS, TABLE, swap_under_load, table
from benchmarks.swap_load import Answer, Question, Tally
from benchmarks.swap_mistakes import MISTAKES
from benchmarks.swap_world import NAME, served_world
from deploy.cli import promote as command
from deploy.cli import rollback
from deploy.errors import ExitCode, UnfinishedError
from deploy.repository.history import read_history
from deploy.repository.layout import promoted_version
from deploy.serve.client import Client, ModelAddress
from deploy.serve.engines import Engine
from deploy.serve.ports import WantedPorts, choose_ports
from deploy.serve.server import ModelControl
from tests.markdown import ROOT
from tests.release.versions import put_linear
from tests.serve.tiny import Linear


@pytest.mark.engine
@pytest.mark.alone
@pytest.mark.parametrize("mode", ["explicit", "poll"])
def test_versions_are_swapped_under_load_with_nothing_lost(mode: ModelControl, engine: Engine, tmp_path: Path) -> None:
    with served_world(tmp_path, mode, engine) as world:
        run = swap_under_load(world, swaps=3, pause=0.3, clients=1)
    assert [swap.action for swap in run.swaps] == ["promote", "rollback", "promote"]
    assert {tally.protocol for tally in run.tallies} == {"grpc", "http"}
    for tally in run.tallies:
        assert (tally.failed, tally.wrong, run.late(tally)) == (0, 0, 0), tally.errors
        assert min(tally.by_version.values()) > 10
        assert set(tally.by_version) == {1, 2}


@pytest.mark.engine
def test_what_must_not_be_done_is_seen_by_the_same_counts(engine: Engine, tmp_path: Path) -> None:
    deeds = {mistake.name: mistake for mistake in MISTAKES}
    with served_world(tmp_path / "artifact", "explicit", engine) as world:
        assert deeds["artifact-explicit"].measure(world, clients=1, after=0.5)["wrong"] > 0
    with served_world(tmp_path / "rename", "poll", engine) as world:
        assert deeds["rename"].measure(world, clients=1, after=0.5)["failed"] > 0


def promote_at(repository: Path, number: int, url: str, *more: str) -> Result:
    return CliRunner().invoke(command.command, [str(repository), f"{NAME}:{number}", "--url", url, *more])


@pytest.mark.engine
def test_promotion_with_a_server_waits_for_it_and_is_undone_where_it_cannot_load(
    engine: Engine, tmp_path: Path
) -> None:
    with served_world(tmp_path, "explicit", engine) as world:
        repository, url = world.repository, world.address("grpc")
        put_linear(repository, Linear(seed=3), artifact=b"no graph")
        put_linear(repository, Linear(seed=3), artifact=Linear(seed=4).onnx())
        done = promote_at(repository, 2, url)
        assert done.exit_code == ExitCode.OK, done.output
        assert "answers with pets:2" in done.stdout
        for number, words in ((3, "could not load pets:3"), (4, "does not answer as pets:4 did when it was proven")):
            refused = promote_at(repository, number, url)
            assert refused.exit_code == ExitCode.NO
            assert words in refused.output
            assert "pets:2 is promoted again" in refused.output
            assert promoted_version(repository / NAME) == 2
        with Client("grpc", url) as client:
            rows = world.question.rows[:1]
            answer = client.infer(ModelAddress(name=NAME, version=2, outputs=("OUTPUT__0",)), {"INPUT__0": rows})
        np.testing.assert_allclose(answer["OUTPUT__0"], Linear(seed=2).outputs(rows), rtol=1e-4)
        back = CliRunner().invoke(
            rollback.command, [str(repository), NAME, "--url", world.address("http"), "--protocol", "http"]
        )
        assert (back.exit_code, "answers with pets:1" in back.stdout) == (ExitCode.OK, True), back.output
        actions = [(entry.action, entry.version) for entry in read_history(repository / NAME).entries]
        assert actions.pop() == ("rollback", 1)
        assert actions[1:] == [("promote", 2), *[("promote", 3), ("rollback", 2), ("promote", 4), ("rollback", 2)]]


def test_a_server_that_is_not_there_is_found_before_anything_is_promoted(tmp_path: Path) -> None:
    for seed in (1, 2):
        put_linear(tmp_path / "models", Linear(seed=seed))
    result = promote_at(tmp_path / "models", 2, f"127.0.0.1:{choose_ports('127.0.0.1', WantedPorts()).grpc}")
    assert isinstance(result.exception, UnfinishedError)
    assert promoted_version(tmp_path / "models" / NAME) == 1


def test_counts_show_what_is_lost_wrong_and_late() -> None:
    tally = Tally(protocol="grpc")
    tally.answers += [
        Answer(sent=0.0, done=0.1, version=1, right=True),
        Answer(sent=1.0, done=1.1, version=None, right=False, error="gone"),
        Answer(sent=2.0, done=2.1, version=2, right=False),
        Answer(sent=3.0, done=3.1, version=1, right=True),
    ]
    assert (tally.sent, tally.failed, tally.wrong, tally.by_version) == (4, 1, 1, {1: 2, 2: 1})
    assert tally.errors == {"gone": 1}
    assert tally.late(2, 2.5, 9.0) == 1
    assert tally.first_from(2, 0.5) == pytest.approx(1.6)


def test_versions_that_answer_alike_cannot_be_told_apart_and_are_refused() -> None:
    rows, same = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    with pytest.raises(AssertionError, match="must differ for every row"):
        Question(model="pets", rows=rows, expected={1: same, 2: same})


def test_the_committed_results_are_those_of_the_page_and_lost_nothing() -> None:
    record = json.loads(RESULTS.read_text())
    assert TABLE.read_text() == table(record)
    assert {(row["mode"], row["protocol"]) for row in record["rows"]} == {
        (mode, protocol) for mode in ("explicit", "poll") for protocol in ("grpc", "http")
    }
    for row in record["rows"]:
        assert (row["failed"], row["wrong"], row["late"], row["swaps"]) == (0, 0, 0, 30)
    page = (ROOT / "docs" / "promotion.md").read_text()
    for mode in ("explicit", "poll"):
        assert f"{sum(row['sent'] for row in record['rows'] if row['mode'] == mode):,}" in page
