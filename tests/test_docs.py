"""What the pages say is so: commands exist and parse, cheap ones run, tables match the code, links lead somewhere.

`make demo` and `make test` are checked to be targets of the Makefile and the demo's script is run to its end with
recorders in place of `deployctl` and `python`; the real demo is a slow test in test_demo.
"""

import contextlib
import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from deploy.cli.main import COMMANDS, cli
from deploy.errors import ExitCode
from deploy.report.targets_tables import HEADINGS, release_rows
from tests.fixtures import save_state_dict, seeded_module
from tests.markdown import PAGES, ROOT, anchors, coded, commands, linked_headings, relative_links, table

README = ROOT / "README.md"
DOCUMENTED = sorted({line for page in PAGES for line in commands(page)})

RECORDER = """#!/bin/bash
[ "$1" = -c ] && exec {python} "$@"
line=$(printf '%q ' "$(basename "$0")" "$@")
echo "$line" >> {record}  # at once: the server writes there too
case "$1" in
    package) mkdir -p {demo}/model_repository/digits_resnet18/1 ;;
    serve) exec sleep 60 ;;
    examples/classify.py) timeout 30 bash -c 'until grep -q "^deployctl serve " {record}; do sleep 0.05; done' ;;
esac
"""


def parse(line: str, folder: Path) -> click.Context:
    """Parse a `deployctl` command line as click does, files that it names made beforehand; nothing is run.

    Raises click.ClickException for a command, an option, a value or a number of arguments that is not accepted.
    """
    words = shlex.split(line)
    assert words[0] == "deployctl"
    for word in words[1:]:
        path = folder / word
        if not word.startswith("-") and path.is_relative_to(folder) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name == "deploy.toml":
                shutil.copy(ROOT / "examples" / "pipelines" / "deploy.toml", path)
            else:
                path.touch() if path.suffix else path.mkdir()
    with contextlib.chdir(folder), cli.make_context("deployctl", words[1:2]) as context:
        name, command, _ = cli.resolve_command(context, words[1:2])
        assert command is not None
        return _leaf(command, name, words[2:], context)


def _leaf(command: click.Command, name: str | None, words: list[str], parent: click.Context) -> click.Context:
    if isinstance(command, click.Group) and words and words[0] in command.commands:
        with command.make_context(name, words[:1], parent=parent) as context:
            return _leaf(command.commands[words[0]], words[0], words[1:], context)
    return command.make_context(name, words, parent=parent)


def deployctl_lines() -> list[str]:
    return [line for line in DOCUMENTED if line.startswith("deployctl ")]


@pytest.mark.parametrize("line", deployctl_lines())
def test_documented_command_lines_parse(line: str, tmp_path: Path) -> None:
    assert parse(line, tmp_path).params


@pytest.mark.parametrize(
    "line", ["deployctl package model.pt --no-such-flag", "deployctl promote", "deployctl nothing"]
)
def test_a_wrong_command_line_does_not_parse(line: str, tmp_path: Path) -> None:
    with pytest.raises(click.ClickException):
        parse(line, tmp_path)


def test_inspect_runs_as_the_readme_writes_it(tmp_path: Path) -> None:
    line = next(line for line in commands(README) if line.startswith("deployctl inspect"))
    save_state_dict(seeded_module("mobilenet_v3_small", size=64), tmp_path / shlex.split(line)[-1])
    command = [str(Path(sys.executable).with_name("deployctl")), *shlex.split(line)[1:]]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "torchvision/mobilenet_v3_small" in result.stdout


def test_documented_make_targets_exist() -> None:
    targets = {line.split()[1] for line in DOCUMENTED if line.startswith("make ")}
    assert {"demo", "test"} <= targets
    for target in sorted(targets):
        result = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


def test_every_documented_command_is_of_a_kind_that_is_checked() -> None:
    checked = ("make ", "deployctl ", ".venv/bin/", "kubectl ", "docker ", "openssl ", "pip install ")
    assert [line for line in DOCUMENTED if not line.startswith(checked)] == []
    tools = {line.split()[0].removeprefix(".venv/bin/") for line in DOCUMENTED if line.startswith(".venv/bin/")}
    assert [tool for tool in sorted(tools) if not Path(sys.executable).with_name(tool).exists()] == []


def test_the_machine_check_that_the_readme_names_runs() -> None:
    result = subprocess.run(["make", "-s", "check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "C++ compiler" in result.stdout


def test_the_readme_lists_the_commands_there_are() -> None:
    listed = [coded(row[0])[0].split()[1] for row in table(README, "Commands")]
    assert listed == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"], prog_name="deployctl")
    assert result.exit_code == 0, result.output
    assert f"Usage: deployctl {name}" in result.output


def test_the_readme_lists_the_exit_codes_there_are() -> None:
    assert [int(row[0]) for row in table(README, "Exit codes")] == [int(code) for code in ExitCode]


def test_the_page_on_targets_holds_the_table_of_the_data() -> None:
    page = ROOT / "docs" / "targets.md"
    assert table(page, "The releases") == [list(row) for row in release_rows()]
    head = page.read_text().split("## The releases", 1)[1].split("| ---", 1)[0]
    assert [cell.strip() for cell in head.strip().strip("|").split("|")] == list(HEADINGS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert [link for link in relative_links(page) if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_the_headings_that_they_name(page: Path) -> None:
    named = [(page.parent / place if place else page, heading) for place, heading in linked_headings(page)]
    assert [heading for place, heading in named if heading not in anchors(place)] == []


def test_a_heading_that_is_not_there_is_seen() -> None:
    monitoring = ROOT / "docs" / "monitoring.md"
    assert ("", "tritonqueuesaturated") in linked_headings(monitoring)
    assert ("operating.md", "incident-checklists") in linked_headings(monitoring)
    assert "tritonqueuesaturated" in anchors(monitoring) - anchors(ROOT / "docs" / "operating.md")


def test_the_demo_runs_each_step_and_stops_its_server(tmp_path: Path) -> None:
    record, demo, programs = tmp_path / "record", tmp_path / "demo", tmp_path / "bin"
    programs.mkdir()
    demo.mkdir()
    for name in ("deployctl", "python"):
        program = programs / name
        program.write_text(RECORDER.format(python=sys.executable, record=record, demo=demo))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "scripts/demo.sh", str(demo)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = record.read_text().splitlines()
    steps = [word for line in lines for word in shlex.split(line)[:2] if word not in ("deployctl", "python")]
    assert sorted(steps) == ["examples/classify.py", "examples/finetune.py", "inspect", "package", "serve"]
    for line in lines:
        if line.startswith("deployctl "):
            assert parse(line, tmp_path).params
        else:
            assert (ROOT / shlex.split(line)[1]).exists()
    assert f"{demo}/model_repository/digits_resnet18/1/" in result.stdout
