"""`deployctl publish REPOSITORY NAME[:N] DESTINATION`: send a version to another repository.

Owns the words on the terminal. The work is `deploy.release.stores.publish`'s.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.cli.options import config_option
from deploy.cli.types import Location
from deploy.errors import UsageError

if TYPE_CHECKING:
    from deploy.release.stores.publish import Published


@click.command("publish")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("reference", metavar="NAME[:N]")
@click.argument("destination", required=False)
@click.option("--to", type=Location(), metavar="DESTINATION", help="Where it goes where no DESTINATION is given.")
@click.option("--renumber", is_flag=True, help="Take the next free number if its own is another version's there.")
@click.option("--promote", is_flag=True, help="Make it the version that is served there, last of all.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    *, repository: Path, reference: str, destination: str | None, to: str | None, as_json: bool, **given: bool
) -> None:
    """Send NAME (its promoted version) or NAME:N of REPOSITORY to DESTINATION, with what is attested of it.

    DESTINATION is a folder, s3://BUCKET/PATH, gs://, az://, abfs:// or oci://HOST/PATH. Every file is compared with its
    digest first; a reader there sees the whole version or none. What an interrupted run has sent is not sent again.
    The first version of a model is promoted there, later ones wait. Credentials are the provider's own affair.
    """
    from deploy.release.stores.publish import PublishRequest, run_publish
    from deploy.report.stages import Stages

    place = destination or to
    if place is None:
        raise UsageError(
            "nothing says where the version goes",
            expected="DESTINATION, or --config FILE with a table [publish] and the key to",
        )
    request = PublishRequest(repository=repository, reference=reference, destination=place, **given)
    with Stages(quiet=as_json) as progress:
        published = run_publish(request, progress=progress)
    if as_json:
        click.echo(json.dumps({**asdict(published), "exit_code": 0}, indent=2))
    else:
        _show(published)


def _show(published: "Published") -> None:
    name = f"{published.name}:{published.number}"
    verb = "is published in" if published.new else "was there already, the same, in"
    click.echo(f"{name} {verb} {published.destination}{' (promoted)' if published.sent.promoted else ''}")
    if published.steps:
        click.echo(f"  before it what it runs: {', '.join(published.steps)}")
    if published.renumbered_from:
        click.echo(f"  it is version {published.renumbered_from} here; under its new number its digest is another,")
        click.echo("  and what was attested of the old one did not go along")
    click.echo(f"  digest {published.digest}")
    click.echo(f"  {published.sent.files} files sent, {published.sent.present} were there")
