"""What docs/ says of numbers, options and pages is so; commands and links are test_docs's."""

import json
import re
from typing import get_args

import click

from benchmarks import models
from deploy.cli.config import find_command
from deploy.cli.main import COMMANDS
from deploy.errors import ExitCode
from deploy.monitoring.rules import AlertName
from deploy.repository.manifest import Environment
from deploy.validate.baseline import LIMITS
from tests.markdown import ROOT, coded, prose, relative_links, table

DOCS = ROOT / "docs"


def options(command: click.Command) -> set[str]:
    inner = command.commands.values() if isinstance(command, click.Group) else ()
    own = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    return own.union(*map(options, inner))


EVERY = set().union(*(options(find_command(name)) for name in COMMANDS)) | {"--debug", "--help"}
TRITONSERVER = {"--repository-poll-secs", "--exit-timeout-secs", "--metrics-config"}
# Of what people come from, and of the command that writes the page of the benchmarks.
FOREIGN = {
    "migration.md": {"--serialized-file", "--model-file", "--extra-files", "--version"},
    "benchmarks.md": set(re.findall(r'"(--[a-z-]+)"', (ROOT / "benchmarks/table/command.py").read_text())),
}


def test_the_index_lists_every_page() -> None:
    listed = {link for link in relative_links(DOCS / "README.md") if "/" not in link}
    assert listed == {page.name for page in DOCS.glob("*.md")} - {"README.md"}


def test_options_that_the_pages_name_exist() -> None:
    seen = set()
    for page in (DOCS.parent / "README.md", *DOCS.glob("*.md")):
        named = {found for words in coded(prose(page)) for found in re.findall(r"--[a-z][a-z0-9-]*", words)}
        assert named - EVERY - TRITONSERVER - FOREIGN.get(page.name, set()) - {"--no-"} == set(), page.name
        seen |= named
    assert len(seen & EVERY) > 50
    for heading in ("From TorchServe", "From Model Navigator"):
        for row in table(DOCS / "migration.md", heading):
            named = {found for words in coded(row[1]) for found in re.findall(r"--[a-z][a-z0-9-]*", words)}
            assert named - EVERY == set(), row


def test_the_page_of_the_models_is_that_of_their_record() -> None:
    record = json.loads(models.RESULTS.read_text())
    page = models.table(record["rows"], Environment.model_validate(record["environment"]), record["date"])
    assert models.TABLE.read_text() == page


def test_the_exit_codes_of_the_concepts_are_those_of_the_code() -> None:
    assert [int(row[0]) for row in table(DOCS / "concepts.md", "Exit codes")] == [int(code) for code in ExitCode]


def test_the_operator_is_told_what_to_do_for_each_alert() -> None:
    assert {coded(row[0])[0] for row in table(DOCS / "operating.md", "Alerts")} == set(get_args(AlertName))


def test_the_limits_that_the_concepts_name_are_those_of_the_code() -> None:
    parity = next(row for row in table(DOCS / "concepts.md", "Verdicts") if row[0] == "parity")[1]
    limits = LIMITS["fp32"]
    assert f"max error at most {limits.max_multiple:g} and L2 error at most {limits.l2_multiple:g} times" in parity


def test_the_mutants_that_the_concepts_count_are_there() -> None:
    rows = [line for line in (DOCS / "mutants.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert f"{len(rows)} corrupted artifacts, each caught" in (DOCS / "concepts.md").read_text()
