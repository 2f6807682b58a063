"""The reference pages and the schema are those of the code, and the schema judges a deploy.toml as the code does."""

import json
import tomllib
from pathlib import Path

import click
import jsonschema
import pytest
import write_docs

from deploy.cli.config import find_command, read_config
from deploy.cli.examples import EXAMPLES
from deploy.cli.main import COMMANDS
from deploy.errors import UsageError
from tests.markdown import ROOT

SCHEMA = json.loads((ROOT / "docs" / "deploy.schema.json").read_text())
GOOD = ROOT / "examples" / "pipelines" / "deploy.toml"


@pytest.mark.parametrize("page", write_docs.PAGES)
def test_a_page_that_is_written_from_the_code_is_up_to_date(page: str) -> None:
    assert (ROOT / "docs" / page).read_text() == write_docs.PAGES[page](), "run: python scripts/write_docs.py"


def leaves(name: str, command: click.Command) -> list[str]:
    if isinstance(command, click.Group):
        return [leaf for inner, one in command.commands.items() for leaf in leaves(f"{name} {inner}", one)]
    return [name]


def test_every_command_has_examples_of_itself() -> None:
    every = [leaf for name in COMMANDS for leaf in leaves(name, find_command(name))]
    assert set(EXAMPLES) == set(every)
    for name, lines in EXAMPLES.items():
        assert lines
        assert [line for line in lines if not line.startswith(f"deployctl {name}")] == []


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["additionalProperties"] is False


def test_the_example_of_a_deploy_toml_is_accepted_by_both() -> None:
    jsonschema.validate(tomllib.loads(GOOD.read_text()), SCHEMA)
    assert read_config(GOOD)


@pytest.mark.parametrize(
    "text",
    [
        "[package]\nmax_bach = 4\n",
        "[package]\npromote = true\n",
        "[package]\nformats = ['tf']\n",
        "[package]\ninput_shape = [3, 0]\n",
        "[package]\ncpu_isa = 'sse'\n",
        "[slo]\nrate = '200'\n",
        "[slo]\nrate = 0\n",
        "[slo]\nconfidence = 0.5\n",
        "[packge]\n",
        "rate = 3\n",
    ],
)
def test_the_schema_and_the_code_refuse_the_same(tmp_path: Path, text: str) -> None:
    (tmp_path / "deploy.toml").write_text(text)
    with pytest.raises(UsageError):
        read_config(tmp_path / "deploy.toml")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(text), SCHEMA)


@pytest.mark.parametrize(
    "text", ["[package]\ninput_shape = [[3, 64, 64], [5]]\n", "[slo]\nrate = 200\n", "[package]\nthorough = true\n", ""]
)
def test_the_schema_and_the_code_accept_the_same(tmp_path: Path, text: str) -> None:
    (tmp_path / "deploy.toml").write_text(text)
    assert read_config(tmp_path / "deploy.toml") is not None
    jsonschema.validate(tomllib.loads(text), SCHEMA)
