"""`deployctl rollback REPOSITORY NAME`: go back to the version that was promoted before.

Owns no words of its own: it prints what `promote` prints. The work is `deploy.release.promotion`'s.
"""

from pathlib import Path
from typing import Any

import click

from deploy.cli.options import server_options
from deploy.cli.promote import show


@click.command("rollback")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--to", type=click.IntRange(min=1), metavar="N", help="Go back further, to version N promoted earlier.")
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, /, *, repository: Path, name: str, as_json: bool, **given: Any) -> None:
    """Make Triton serve the version of NAME that was promoted before the present one.

    With the config it was proven with, compared with its digest; a config that was edited by hand is kept aside. It
    stands whatever the server named by --url does; exit code 1 if that does not take it up.
    """
    from deploy.release.promotion import run_rollback

    result = run_rollback(repository, name, **given)
    show(result, as_json=as_json)
    ctx.exit(result.exit_code)
