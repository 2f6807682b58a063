"""`--config deploy.toml`: options from a file, outdone by the command line; a bad file stops a command at once."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from deploy.checkpoint.model import InputRequest
from deploy.cli.config import RECORDS, TABLES, find_command, own_command, read_config, table_options, table_record
from deploy.cli.main import COMMANDS, cli
from deploy.cli.types import Amount
from deploy.errors import UsageError
from deploy.release.policy_file import read_environment
from deploy.settings import LONGEST_MS, LONGEST_SECONDS
from deploy.slo.settings import SloSettings, read_settings

TEXT = """
[package]
repository = "models"
input_shape = [3, 64, 64]
formats = ["onnx"]
thorough = true
serve_check = false
memory_limit = 4

[slo]
url = "localhost:8001"
rate = 200
p99_ms = 15.0

[tune]
p99_ms = 15.0
"""


def parsed(folder: Path, name: str, *arguments: str, text: str = TEXT) -> click.Context:
    (folder / "deploy.toml").write_text(text)
    return find_command(name).make_context(name, [*arguments, "--config", str(folder / "deploy.toml")])


def test_a_file_says_what_no_option_says(tmp_path: Path) -> None:
    found = parsed(tmp_path, "package", "model.pt").params
    assert found["repository"] == tmp_path / "models"
    assert found["inputs"] == (InputRequest(shape=(3, 64, 64)),)
    assert (found["formats"], found["thorough"], found["serve_check"]) == (("onnx",), True, False)
    assert (found["memory_limit"], found["max_batch"]) == (4.0, 8)


def test_an_option_outdoes_the_file(tmp_path: Path) -> None:
    options = ("--repository", "here", "--no-thorough", "--serve-check", "--input-shape", "1,8", "--formats", "aoti")
    found = parsed(tmp_path, "package", "model.pt", *options).params
    assert found["repository"] == Path("here")
    assert (found["thorough"], found["serve_check"]) == (False, True)
    assert (found["inputs"], found["formats"]) == ((InputRequest(shape=(1, 8)),), ("aoti",))


def test_a_file_can_say_what_a_command_requires(tmp_path: Path) -> None:
    assert parsed(tmp_path, "tune", "models", "pets").params["p99_ms"] == 15.0
    with pytest.raises(click.MissingParameter):
        parsed(tmp_path, "tune", "models", "pets", text="[tune]\ntrials = 3\n")


def test_several_shapes_are_a_list_of_lists(tmp_path: Path) -> None:
    found = parsed(tmp_path, "package", "model.pt", text="[package]\ninput_shape = [[3, 64, 64], [5]]\n")
    assert [one.shape for one in found.params["inputs"]] == [(3, 64, 64), (5,)]


def test_the_recorded_command_says_what_the_file_said(tmp_path: Path) -> None:
    words = ["package", "/data/model.pt", "--config", "deploy.toml", "--name", "pets", "--no-thorough"]
    context = parsed(tmp_path, "package", *words[1:2], *words[4:])
    recorded = own_command(context, words)
    assert recorded[:5] == ("deployctl", "package", "model.pt", "--name", "pets")
    said = " ".join(recorded)
    assert "--input-shape 3,64,64" in said
    assert "--formats onnx" in said
    assert "--no-serve-check" in said
    assert "--repository models" in said
    assert "config" not in said
    assert " --thorough" not in said
    again = find_command("package").make_context("package", list(recorded[2:]))
    names = {"inputs", "formats", "thorough", "serve_check", "memory_limit", "name"}
    assert {name: again.params[name] for name in names} == {name: context.params[name] for name in names}


@pytest.mark.parametrize("table", [name for name in TABLES if name not in RECORDS])
def test_each_key_is_a_long_option_with_a_meaning(table: str) -> None:
    options = table_options(find_command(table))
    assert options.keys() == table_record(table).model_fields.keys()
    for key, option in options.items():
        assert f"--{key.replace('_', '-')}" in option.opts
        assert option.help
        assert option.secondary_opts or not option.is_flag


def test_no_number_of_any_command_is_nan_or_infinite() -> None:
    """NaN lies within every bound that is asked with < and >, and a verdict by it is none."""
    numbers = [
        (name, option)
        for name in COMMANDS
        if not isinstance(find_command(name), click.Group)
        for option in find_command(name).params
        if option.type.name.startswith("float")
    ]
    assert len(numbers) > 30
    for name, option in numbers:
        for value in ("nan", "inf"):
            with pytest.raises(click.BadParameter):
                option.type.convert(value, option, None)
            assert isinstance(option.type, Amount), (name, option.name)


@pytest.mark.parametrize(("ending", "longest"), [("_ms", LONGEST_MS), ("timeout", LONGEST_SECONDS)])
def test_no_time_is_longer_than_timers_and_alerts_can_count(ending: str, longest: float) -> None:
    found = [
        option
        for name in COMMANDS
        if not isinstance(find_command(name), click.Group)
        for option in find_command(name).params
        if option.name and option.name.endswith(ending)
    ]
    assert len(found) > 3
    for option in found:
        assert option.type.convert(longest, option, None) == longest
        with pytest.raises(click.BadParameter, match="not in the range"):
            option.type.convert(1.1 * longest, option, None)


def test_rooms_below_read_the_same_keys_of_slo(tmp_path: Path) -> None:
    assert set(SloSettings.model_fields) == set(table_record("slo").model_fields)
    (tmp_path / "deploy.toml").write_text(TEXT.replace("rate = 200", "rate = 200\nsamples = 'x.npz'"))
    found = read_settings(tmp_path / "deploy.toml")
    assert (found.rate, found.samples) == (200.0, tmp_path / "x.npz")
    for key in found.model_fields_set:
        assert getattr(read_config(tmp_path / "deploy.toml")["slo"], key) == getattr(found, key)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_with_config_are_those_with_a_table(name: str) -> None:
    has_config = any("--config" in option.opts for option in find_command(name).params)
    assert has_config == (name in TABLES and name not in RECORDS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[package]\nmax_bach = 4\n", "did you mean max_batch?"),
        ("[package]\npromote = true\n", "give --promote on the command line"),
        ("[package]\nformats = ['tf']\n", "Input should be 'aoti' or 'onnx'"),
        ("[package]\ninput_shape = [3, 0]\n", "input_shape.1 is 0"),
        ("[package]\n[slo]\nrate = -1\n", "[slo] rate is -1"),
        ("[packge]\n", "did you mean [package]?"),
        ("[slo]\n", "has no table [package]; it holds [slo]"),
    ],
)
def test_a_bad_file_is_refused_by_each_command(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parsed(tmp_path, "package", "model.pt", text=text)
    assert said in str(error.value)


def test_the_whole_file_is_checked_whatever_the_command(tmp_path: Path) -> None:
    (tmp_path / "deploy.toml").write_text(TEXT)
    assert list(read_config(tmp_path / "deploy.toml")) == ["package", "slo", "tune"]


def test_package_ends_with_2_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "deploy.toml").write_text("[package]\nmax_bach = 4\n")
    command = [sys.executable, "-m", "deploy", "package", "absent.pt", "--config", "deploy.toml", "--json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "did you mean max_batch?" in result.stderr
    assert "absent.pt" not in result.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "deploy.toml"]


def test_help_names_the_option() -> None:
    result: Any = CliRunner().invoke(cli, ["package", "--help"], prog_name="deployctl")
    assert "--config FILE" in result.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[packge]\n[promote]\n", "did you mean [package]?"),
        ("[promote]\nrequires = ['slo']\n", "did you mean require?"),
        ("[promote]\nmax_p99_ms = 15\n", "max_p99_ms is about"),
        ("[slo]\n", "has no table [promote]; it holds [slo]"),
    ],
)
def test_promote_refuses_a_bad_file_before_it_looks_at_a_version(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "deploy.toml").write_text(text)
    (tmp_path / "models").mkdir()
    arguments = ["promote", str(tmp_path / "models"), "pets:2", "--environment", str(tmp_path / "deploy.toml")]
    result = CliRunner().invoke(cli, arguments, prog_name="deployctl")
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)


def test_a_whole_deploy_toml_is_an_environment(tmp_path: Path) -> None:
    (tmp_path / "deploy.toml").write_text(TEXT + "[promote]\nrequire = ['slo']\n")
    assert read_environment(tmp_path / "deploy.toml").policy.require == ("slo",)


def test_a_file_chooses_the_precision(tmp_path: Path) -> None:
    text = '[package]\nprecision = "int8"\nmax_drop = 1.5\nmetric = "accuracy"\n'
    given = parsed(tmp_path, "package", "model.pt", text=text).params
    assert (given["precision"], given["max_drop"], given["metric"]) == ("int8", 1.5, "accuracy")
