"""`deployctl doctor`: what this machine can build, serve and measure.

Owns the words on the terminal. The work is `deploy.doctor`'s.
"""

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def command(ctx: click.Context, *, as_json: bool) -> None:
    """Say what this machine can build, serve and measure, with a remedy for each thing it lacks.

    Exit code 0 if `package` can run, 3 if something that it needs is missing.
    """
    from deploy.doctor import examine

    found = examine(Path())
    if as_json:
        findings = [asdict(finding) for finding in found.findings]
        click.echo(json.dumps({"findings": findings, "can": found.can, "exit_code": int(found.exit_code)}, indent=2))
    else:
        for finding in found.findings:
            click.echo(f"{finding.state.upper() if finding.remedy else 'ok':>7}  {finding.what}: {finding.found}")
            if finding.remedy:
                click.echo(f"         to do: {finding.remedy}")
        click.echo()
        for work, answer in found.can.items():
            click.echo(f"{work}: {answer}")
    ctx.exit(found.exit_code)
