"""`deployctl rollback REPOSITORY NAME`: go back to the version that was promoted before.

Owns no words of its own: it prints what `promote` prints. The work is `deploy.repository.promotion`'s.
"""

from pathlib import Path

import click

from deploy.cli.promote import show
from deploy.repository.promotion import rollback


@click.command("rollback")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--to", type=click.IntRange(min=1), metavar="N", help="Go back further, to version N promoted earlier.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(*, repository: Path, name: str, to: int | None, as_json: bool) -> None:
    """Make Triton serve the version of NAME that was promoted before the present one.

    With the config it was proven with, compared with its digest; a config that was edited by hand is kept aside.
    """
    show(rollback(repository, name, to=to), as_json=as_json)
