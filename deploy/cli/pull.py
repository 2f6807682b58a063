"""`deployctl pull SOURCE NAME[:N] REPOSITORY`: bring a version of another repository here.

Owns the words on the terminal. The work is `deploy.release.stores.pull`'s.
"""

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.command("pull")
@click.argument("source")
@click.argument("reference", metavar="NAME[:N]")
@click.argument("repository", type=click.Path(path_type=Path))
@click.option("--digest", metavar="SHA256", help="Only if the version has this digest, as `publish` printed it.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(*, source: str, reference: str, repository: Path, digest: str | None, as_json: bool) -> None:
    """Bring NAME (the version promoted in SOURCE) or NAME:N into REPOSITORY, with what is attested of it.

    SOURCE is a folder, s3://BUCKET/PATH, gs://, az://, abfs:// or oci://HOST/PATH. Every file is compared with its
    digest before one rename makes the version visible; a file that differs ends it with exit code 2 and nothing
    received. The first version of a model is promoted here, later ones wait for `deployctl promote`.
    """
    from deploy.release.stores.pull import PullRequest, run_pull
    from deploy.report.stages import Stages

    request = PullRequest(source=source, reference=reference, repository=repository, digest=digest)
    with Stages(quiet=as_json) as progress:
        pulled = run_pull(request, progress=progress)
    if as_json:
        click.echo(json.dumps({**asdict(pulled), "exit_code": 0}, indent=2))
        return
    name = f"{pulled.name}:{pulled.number}"
    verb = "is now in" if pulled.new else "was already, the same, in"
    click.echo(f"{name} {verb} {repository}{' (promoted)' if pulled.received.promoted else ''}")
    click.echo(f"  digest {pulled.digest}")
    if pulled.steps:
        click.echo(f"  before it what it runs: {', '.join(pulled.steps)}")
    click.echo(f"  {pulled.received.files} files received from {pulled.source}")
