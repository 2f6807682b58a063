"""`deployctl docker REPOSITORY [NAME[:N] ...]`: images and a compose file for versions, with their monitoring.

Owns the words on the terminal. The work is deploy.containers'.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.options import config_option
from deploy.cli.types import MILLISECONDS

if TYPE_CHECKING:
    from deploy.containers.render import Role


@click.command("docker")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("references", metavar="[NAME[:N]]...", nargs=-1)
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where the files go.")
@click.option("--target", metavar="NAME", help="The release to serve with.  [default: the one packaged for]")
@click.option("--p99-ms", type=MILLISECONDS, help="Watch that 99 % are within this bound.")
@click.option("--slo", type=click.Path(path_type=Path), metavar="FILE", help="Watch the bounds of its table [slo].")
@click.option("--pin", "pins", multiple=True, metavar="ROLE=sha256:HEX", help="Pin an image by its digest too.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def command(*, repository: Path, references: tuple[str, ...], output: Path, as_json: bool, **given: Any) -> None:
    """Render what serves versions of REPOSITORY: images, and a compose file with Prometheus and Grafana.

    One image serves the versions, the other packages for the same target; nothing is built. Without names all promoted
    versions are taken. Without a bound, the objectives are those that each version was last shown to keep by
    `deployctl slo`. ROLE is server, packager, prometheus or grafana.
    """
    from deploy.containers.render import DockerRequest, render, write
    from deploy.monitoring.objective import objectives_for
    from deploy.serve.serving import chosen_versions

    versions = chosen_versions(repository, references)
    request = DockerRequest(
        versions=versions,
        output=output,
        target=given.pop("target"),
        pins=_parse_pins(given.pop("pins")),
        objectives=tuple(found for version in versions for found in objectives_for(version, **given)),
    )
    rendered = render(request)
    paths = write(rendered, output)
    for note in rendered.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        facts = {"target": rendered.target.name, "versions": [str(version) for version in versions]}
        click.echo(json.dumps({**facts, "files": [str(path) for path in paths], "notes": rendered.notes}, indent=2))
        return
    click.echo(f"{', '.join(map(str, versions))} for {rendered.target.name}:")
    for path in paths:
        click.echo(f"  {path}")


def _parse_pins(pins: tuple[str, ...]) -> dict["Role", str]:
    from deploy.containers.render import ROLES
    from deploy.errors import UsageError

    found: dict[Role, str] = {}
    for pin in pins:
        name, _, digest = pin.partition("=")
        role = next((role for role in ROLES if role == name), None)
        if role is None or role in found:
            raise UsageError(f"--pin is {pin!r}", expected=f"ROLE=sha256:HEX, once for each of {', '.join(ROLES)}")
        found[role] = digest
    return found
