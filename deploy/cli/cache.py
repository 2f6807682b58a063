"""`deployctl cache list | prune`: the compiled code that is kept for the next fine-tune of the same architecture.

Owns the words on the terminal. The work is `deploy.cache`'s.
"""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import click

from deploy.cache import Entry, artifact_store
from deploy.cli.types import Amount

_MB = 1_000_000


@click.group("cache")
def command() -> None:
    """List or remove compiled code that is kept for the next fine-tune.

    `package` keeps what it compiles, without weights, under a digest of all that decides it: graph, shapes, target,
    tools. The next checkpoint of the same architecture takes that code with its own weights, and is proven like any.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def list_(*, as_json: bool) -> None:
    """List what is kept, used last first, with its size."""
    kept = artifact_store().entries()
    _show(kept, as_json=as_json)
    if not as_json:
        total = sum(entry.size for entry in kept)
        click.echo(f"{len(kept)} entries, {total / _MB:.1f} MB in {artifact_store().folder}")
    if artifact_store().open_to_others():
        click.echo(f"none of them is used: others may write there; chmod go-w {artifact_store().folder}", err=True)


@command.command("prune")
@click.option("--unused-days", type=Amount(min=0), metavar="DAYS", help="Only what was unused for so long.")
@click.option("--max-mb", type=Amount(min=0), metavar="MB", help="Only as much as leaves this size at most.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def prune_(*, unused_days: float | None, max_mb: float | None, as_json: bool) -> None:
    """Remove what is kept: all of it, or what the options say. The next `package` compiles it again."""
    removed = artifact_store().prune(unused_days=unused_days, most_bytes=None if max_mb is None else int(max_mb * _MB))
    _show(removed, as_json=as_json)
    if not as_json:
        click.echo(f"{len(removed)} entries removed, {sum(entry.size for entry in removed) / _MB:.1f} MB")


def _show(kept: Sequence[Entry], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([_as_dict(entry) for entry in kept], indent=2))
        return
    for entry in kept:
        days = (time.time() - entry.used) / 86_400
        click.echo(f"{entry.key[:12]}  {entry.size / _MB:8.1f} MB  used {days:.1f} days ago  {entry.about}")


def _as_dict(entry: Entry) -> dict[str, str | int]:
    used = datetime.fromtimestamp(entry.used, UTC).isoformat(timespec="seconds")
    return {"key": entry.key, "about": entry.about, "bytes": entry.size, "used": used}
