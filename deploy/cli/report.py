"""`deployctl report REPOSITORY NAME[:N]`: a version and what was learnt of it since, as one HTML file.

Owns the words on the terminal. The page is deploy.report's work.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from deploy.report.standing import Check


@click.command("report")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("reference", metavar="NAME[:N]")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="The HTML file.  [default: NAME-N.html]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON too.")
def command(*, repository: Path, reference: str, output: Path | None, as_json: bool) -> None:
    """Write what was proven and measured of a version, with its attestations, to one HTML file.

    The file needs no network and no script. Exit code 0 once it is written, whatever the verdicts in it.
    """
    from deploy.report.standing import overall
    from deploy.report.write import write_report

    written = write_report(repository, reference, output)
    whole = overall(written.checks)
    if as_json:
        checks = [_as_dict(check) for check in written.checks]
        facts = {
            "version": str(written.version),
            "output": str(written.path),
            "verdict": whole.word.lower(),
            "signature": written.signature,
        }
        click.echo(json.dumps({**facts, "reason": whole.reason, "checks": checks, "exit_code": 0}, indent=2))
        return
    from deploy.report.slo_terminal import check_table
    from deploy.report.terminal import show

    show(check_table((*written.checks, whole)))
    click.echo(f"{written.version} {written.signature}")
    click.echo(f"written: {written.path}")


def _as_dict(check: "Check") -> dict[str, str]:
    return {"name": check.name, "verdict": check.word.lower(), "reason": check.reason}
