"""`deployctl publish REPOSITORY NAME[:N] DESTINATION`: send a version to another repository.

Owns the words on the terminal. The work is `deploy.release.stores.publish`'s.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from deploy.release.stores.publish import Published


@click.command("publish")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("reference", metavar="NAME[:N]")
@click.argument("destination")
@click.option("--renumber", is_flag=True, help="Take the next free number if its own is another version's there.")
@click.option("--promote", is_flag=True, help="Make it the version that is served there, last of all.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    *, repository: Path, reference: str, destination: str, renumber: bool, promote: bool, as_json: bool
) -> None:
    """Send NAME (its promoted version) or NAME:N of REPOSITORY to DESTINATION, with what is attested of it.

    DESTINATION is a folder, s3://BUCKET/PATH, gs://, az://, abfs:// or oci://HOST/PATH. Every file is compared with its
    digest first; a reader there sees the whole version or none. What an interrupted run has sent is not sent again.
    The first version of a model is promoted there, later ones wait. Credentials are the provider's own affair.
    """
    from deploy.release.stores.publish import PublishRequest, run_publish
    from deploy.report.stages import Stages

    request = PublishRequest(
        repository=repository, reference=reference, destination=destination, renumber=renumber, promote=promote
    )
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
