"""`deployctl verify REPOSITORY [NAME[:N]]`: prove published versions again.

Owns the words on the terminal. The work is `deploy.verify`'s.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.options import config_option
from deploy.errors import UsageError
from deploy.serve.engines import KINDS

if TYPE_CHECKING:
    from deploy.release.signatures import Trust

_FILE = click.Path(path_type=Path)


@click.command("verify")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("reference", metavar="[NAME[:N]]", required=False)
@click.option("--static", is_flag=True, help="Digests, config and target only; nothing is loaded or served.")
@click.option("--target", "target_name", metavar="NAME", help="Ask about this target; default: each version's own.")
@click.option("--engine", "kind", type=click.Choice(KINDS), help="The tritonserver to serve with.")
@click.option("--signature/--no-signature", help="Demand a signature that counts, of the key or the chain given.")
@click.option("--public-key", type=_FILE, metavar="FILE", help="Whose signature counts: that of this key.")
@click.option(
    "--certificate-chain",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="Whose signature counts: that of any certificate of this root; repeatable.",
)
@click.option(
    "--identity", metavar="NAME", help="Of that root's certificates only those of this subject, e-mail, URI or host."
)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, /, *, repository: Path, reference: str | None, as_json: bool, **given: Any) -> None:
    """Prove versions again as they lie in REPOSITORY: all of them, or NAME (its promoted version), or NAME:N.

    Exit code 0 if every check passed, 1 if not. With --signature nothing is loaded unless it was signed by whom you
    trust; --static beside it loads nothing at all.
    """
    from deploy.report.stages import Stages
    from deploy.report.terminal import served_table, show, verdict_lines
    from deploy.serve.engines import find_engine
    from deploy.targets import find_target
    from deploy.verify import verify

    static, kind, name = (given.pop(option) for option in ("static", "kind", "target_name"))
    trust, target = _trust(**given), find_target(name) if name else None
    engine = None if static else find_engine(kind)
    with Stages(quiet=as_json) as stages:
        result = verify(repository, reference, engine=engine, trust=trust, target=target, progress=stages)
    if as_json:
        versions = [
            {
                "name": one.version.name,
                "version": one.version.number,
                "passed": one.passed,
                "checks": {name: judgement.plain() for name, judgement in one.checks.items()},
                "served": one.served.plain() if one.served else None,
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


def _trust(
    *, signature: bool, public_key: Path | None, certificate_chain: tuple[Path, ...], identity: str | None
) -> "Trust | None":
    """Whom to trust; None where no signature was asked for. Raises UsageError if two options do not go together."""
    if not signature:
        if public_key or certificate_chain or identity:
            raise UsageError(
                "it was said whose signature counts, and no signature was asked for",
                expected="--signature beside --public-key, --certificate-chain or --identity",
                fix="add --signature",
            )
        return None
    from deploy.release.signatures import Trust

    return Trust(public_key=public_key, certificate_chain=certificate_chain, identity=identity)
