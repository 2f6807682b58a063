"""`promote` and `rollback` on the command line: words, JSON, errors, and no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploy.cli import promote, rollback
from deploy.errors import UsageError
from deploy.repository.publish import PublishOptions
from tests.repository.samples import FAIL, Sample, put


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    put(tmp_path / "models")
    put(tmp_path / "models", Sample(parity=FAIL, unsafe_accepted=("parity",)))
    put(tmp_path / "models", Sample(format="aoti"), options=PublishOptions(new_contract=True))
    return tmp_path / "models"


def run_promote(*arguments: object) -> Result:
    return CliRunner().invoke(promote.command, [str(argument) for argument in arguments])


def run_rollback(*arguments: object) -> Result:
    return CliRunner().invoke(rollback.command, [str(argument) for argument in arguments])


def test_promote_and_roll_back_in_words(repository: Path) -> None:
    assert run_promote(repository, "pets:2").stdout == "pets:2 is promoted; before it was version 1\n"
    assert run_promote(repository, "pets:2").stdout == "pets:2 was promoted already\n"
    assert run_rollback(repository, "pets").stdout == "pets:1 is promoted; before it was version 2\n"


def test_what_its_users_should_know_is_said(repository: Path) -> None:
    assert "its parity check failed and was accepted as unsafe" in run_promote(repository, "pets:2").stderr
    assert "clients will notice: format: onnx becomes aoti" in run_promote(repository, "pets:3").stderr


def test_an_edited_config_is_named_with_where_it_is_kept(repository: Path) -> None:
    config = repository / "pets/config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 4", 1))
    said = run_promote(repository, "pets:2").stderr
    assert "edited by hand and is replaced; kept as" in said
    assert "edited: instance_group[0].count: 1 -> 4" in said


def test_json_is_all_there_is_on_stdout(repository: Path) -> None:
    printed = json.loads(run_promote(repository, "pets:2", "--json").stdout)
    assert (printed["name"], printed["version"], printed["previous"]) == ("pets", 2, 1)
    assert printed["unsafe_accepted"] == ["parity"]
    assert len(printed["digest"]) == 64
    assert json.loads(run_rollback(repository, "pets", "--json").stdout)["version"] == 1


def test_errors_reach_the_caller_as_they_are(repository: Path) -> None:
    for result, words in (
        (run_promote(repository, "pets"), "'pets' names no version"),
        (run_promote(repository, "pets:9"), "pets has no version 9"),
        (run_promote(repository / "none", "pets:1"), "none is no folder"),
        (run_rollback(repository, "pets"), "nothing to roll pets back to"),
        (run_rollback(repository, "dogs"), "there is no model 'dogs'"),
    ):
        assert isinstance(result.exception, UsageError)
        assert words in str(result.exception)


PROBE = """
import sys
from deploy.cli.main import cli
cli.main(sys.argv[1:], standalone_mode=False)
print([name for name in ("torch", "onnx", "onnxruntime", "torchvision") if name in sys.modules], file=sys.stderr)
"""


def test_neither_command_imports_torch(repository: Path) -> None:
    for arguments in (["promote", str(repository), "pets:2"], ["rollback", str(repository), "pets"]):
        result = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True)
        assert result.stderr.splitlines()[-1] == "[]"
        assert "is promoted" in result.stdout
