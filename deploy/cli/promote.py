"""`deployctl promote REPOSITORY NAME:N`: make a version the one that Triton serves.

Owns the words on the terminal. The work is `deploy.repository.promotion`'s.
"""

import json
from pathlib import Path

import click

from deploy.errors import UsageError
from deploy.repository.find import parse_reference
from deploy.repository.promotion import Promoted, promote


@click.command("promote")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("version", metavar="NAME:N")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(*, repository: Path, version: str, as_json: bool) -> None:
    """Make version N of NAME the one that Triton serves.

    Its files are compared with their digests first, and every check of it must have passed. A server in poll mode
    takes it up by itself; in explicit mode load the model again.
    """
    name, number = parse_reference(version)
    if number is None:
        raise UsageError(f"{version!r} names no version", expected=f"NAME:N, for example {name}:2")
    show(promote(repository, name, number), as_json=as_json)


def show(result: Promoted, *, as_json: bool) -> None:
    """Print which version is promoted now, and what its users should know."""
    if as_json:
        click.echo(json.dumps(as_dict(result), indent=2))
        return
    if result.previous == result.version.number:
        click.echo(f"{result.version} was promoted already")
        return
    before = f"version {result.previous}" if result.previous else "no version"
    click.echo(f"{result.version} is promoted; before it was {before}")
    for check in result.unsafe_accepted:
        click.echo(f"warning: its {check} check failed and was accepted as unsafe", err=True)
    for change in result.contract_changes:
        click.echo(f"warning: clients will notice: {change}", err=True)


def as_dict(result: Promoted) -> dict[str, object]:
    """The result as it is printed with `--json`."""
    return {
        "name": result.version.name,
        "version": result.version.number,
        "previous": result.previous,
        "digest": result.digest,
        "unsafe_accepted": list(result.unsafe_accepted),
        "contract_changes": list(result.contract_changes),
    }
