"""`deployctl verify REPOSITORY [NAME[:N]]`: prove published versions again.

Owns the words on the terminal. The work is `deploy.verify`'s.
"""

import json
from pathlib import Path
from typing import Any

import click

from deploy.serve.engines import KINDS


@click.command("verify")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("reference", metavar="[NAME[:N]]", required=False)
@click.option("--static", is_flag=True, help="Digests, config and target only; nothing is loaded or served.")
@click.option("--target", "target_name", metavar="NAME", help="Ask about this target; default: each version's own.")
@click.option("--engine", "kind", type=click.Choice(KINDS), help="The tritonserver to serve with.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, /, *, repository: Path, reference: str | None, as_json: bool, **given: Any) -> None:
    """Prove versions again as they lie in REPOSITORY: all of them, or NAME (its promoted version), or NAME:N.

    Exit code 0 if every check passed, 1 if not.
    """
    from deploy.report.stages import Stages
    from deploy.report.terminal import served_table, show, verdict_lines
    from deploy.serve.engines import find_engine
    from deploy.targets import find_target
    from deploy.verify import verify

    target = find_target(given["target_name"]) if given["target_name"] else None
    engine = None if given["static"] else find_engine(given["kind"])
    with Stages(quiet=as_json) as stages:
        result = verify(repository, reference, engine=engine, target=target, progress=stages)
    if as_json:
        versions = [
            {
                "name": one.version.name,
                "version": one.version.number,
                "passed": one.passed,
                "checks": {name: judgement.model_dump(mode="json") for name, judgement in one.checks.items()},
                "served": one.served.model_dump(mode="json") if one.served else None,
            }
            for one in result.versions
        ]
        click.echo(json.dumps({"versions": versions, "exit_code": int(result.exit_code)}, indent=2))
    else:
        for one in result.versions:
            show(verdict_lines({f"{one.version} {name}": judgement for name, judgement in one.checks.items()}))
        served = [one.served for one in result.versions if one.served]
        if served:
            show(served_table(served))
    ctx.exit(result.exit_code)
