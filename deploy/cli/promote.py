"""`deployctl promote REPOSITORY NAME:N`: make a version the one that Triton serves.

Owns the words on the terminal. The work is `deploy.release.promotion`'s.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.options import server_options
from deploy.errors import UsageError
from deploy.repository.find import parse_reference

if TYPE_CHECKING:
    from deploy.release.promotion import PromotionResult
    from deploy.repository.promotion import Promoted


@click.command("promote")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("version", metavar="NAME:N")
@click.option(
    "--environment",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A TOML file, such as deploy.toml, whose [promote] says what must have passed.",
)
@click.option("--require-native", is_flag=True, help="Only if a native tritonserver served it when it was proven.")
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, /, *, repository: Path, version: str, as_json: bool, **given: Any) -> None:
    """Make version N of NAME the one that Triton serves.

    Its files are compared with their digests first, and every check of it must have passed. A server in poll mode
    takes it up by itself; in explicit mode load the model again, or name it with --url. Exit code 1 if a demand of the
    environment is not met, each with the command that would meet it, or the server does not take the version up.
    """
    name, number = parse_reference(version)
    if number is None:
        raise UsageError(f"{version!r} names no version", expected=f"NAME:N, for example {name}:2")
    from deploy.release.promotion import PromotionRequest, run_promotion

    if given["environment"] is not None:
        from deploy.cli.config import read_config
        from deploy.settings import get_table

        # A mistake in any table is refused, as by the other commands.
        get_table(given["environment"], "promote", read_config(given["environment"]))
    result = run_promotion(PromotionRequest(repository=repository, reference=version, **given))
    show(result, as_json=as_json)
    ctx.exit(result.exit_code)


def show(result: "PromotionResult", *, as_json: bool) -> None:
    """Print which version is promoted now, what was demanded of it, and what a server made of it."""
    if as_json:
        click.echo(json.dumps(_result_as_dict(result), indent=2))
    else:
        _show_result(result)


def _show_result(result: "PromotionResult") -> None:
    if decision := result.decision:
        for demand in decision.demands:
            click.echo(f"{demand.judgement.verdict.upper():5} {demand.name}: {demand.judgement.reason}")
            if demand.command and not demand.judgement.passed:
                click.echo(f"      to do: {demand.command}")
    if result.promoted:
        _show_promoted(result.promoted)
    elif decision:
        where = f" in {decision.environment}" if decision.environment else ""
        click.echo(f"{result.version} is not promoted{where}: {decision.judgement.reason}")
    if rollout := result.rollout:
        click.echo(f"{rollout.judgement.verdict.upper():5} server: {rollout.judgement.reason}")
        if rollout.undone:
            click.echo(f"{rollout.undone.version} is promoted again")
        elif not rollout.judgement.passed:
            _show_left(result)


def _show_left(result: "PromotionResult") -> None:
    """What the repository says where a server did not take up what is promoted now, and how to change that."""
    version = result.version
    click.echo(f"{version.model_folder / 'config.pbtxt'} names {version} all the same: look after the server, or")
    click.echo(f"promote another version: `deployctl promote {version.repository} {version.name}:N`")


def _result_as_dict(result: "PromotionResult") -> dict[str, Any]:
    version = result.version
    facts = _as_dict(result.promoted) if result.promoted else {"name": version.name, "version": version.number}
    if decision := result.decision:
        demands = [
            {
                "name": one.name,
                "verdict": one.judgement.verdict,
                "reason": one.judgement.reason,
                "to_do": "" if one.judgement.passed else one.command,
                "relied": one.relied.model_dump() if one.relied else None,
            }
            for one in decision.demands
        ]
        facts |= {"environment": decision.environment, "demands": demands}
    if rollout := result.rollout:
        facts["server"] = {
            "address": rollout.address,
            "verdict": rollout.judgement.verdict,
            "reason": rollout.judgement.reason,
            "seconds": rollout.seconds,
            "undone": rollout.undone.version.number if rollout.undone else None,
        }
    taken = result.rollout is None or result.rollout.undone is None
    return {**facts, "promoted": result.promoted is not None and taken, "exit_code": int(result.exit_code)}


def _show_promoted(result: "Promoted") -> None:
    if result.previous == result.version.number:
        click.echo(f"{result.version} was promoted already")
    else:
        before = f"version {result.previous}" if result.previous else "no version"
        click.echo(f"{result.version} is promoted; before it was {before}")
        for step in result.steps:
            click.echo(f"  {step}, which it runs, is promoted with it")
        for check in result.unsafe_accepted:
            click.echo(f"warning: its {check} check failed and was accepted as unsafe", err=True)
        for change in result.contract_changes:
            click.echo(f"warning: clients will notice: {change}", err=True)
    if result.edited:
        click.echo(f"warning: config.pbtxt had been edited by hand and is replaced; kept as {result.kept}", err=True)
        for edit in result.edited:
            click.echo(f"  edited: {edit}", err=True)


def _as_dict(result: "Promoted") -> dict[str, object]:
    """The result as it is printed with `--json`."""
    return {
        "name": result.version.name,
        "version": result.version.number,
        "previous": result.previous,
        "digest": result.digest,
        "unsafe_accepted": list(result.unsafe_accepted),
        "contract_changes": list(result.contract_changes),
        "edited": list(result.edited),
        "steps": [str(step) for step in result.steps],
        "kept": str(result.kept) if result.kept else None,
    }
