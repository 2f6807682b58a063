"""`deployctl tune REPOSITORY NAME[:N]`: the configuration that sustains the highest rate within a bound.

Owns the options. The work is `deploy.tune`'s.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.options import config_option
from deploy.cli.published import end, problem_facts, tell_kept
from deploy.cli.types import MILLISECONDS, SECONDS

if TYPE_CHECKING:
    from deploy.tune.request import TuneRequest, TuneResult


@click.command("tune")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("reference", metavar="NAME[:N]")
@click.option("--p99-ms", type=MILLISECONDS, required=True, help="99 % of the queries within so many milliseconds.")
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="Settings to try, in all.")
@click.option("--timeout", type=SECONDS, metavar="S", help="Seconds for all trials; what was found by then counts.")
@click.option(
    "--seconds-per-probe", type=SECONDS, default=4.0, show_default=True, help="One load; a trial makes 2 to 10."
)
@click.option("--storage", type=click.Path(path_type=Path, dir_okay=False), help="Keep the trials in this file.")
@click.option("--resume", is_flag=True, help="Go on with the trials that an interrupted search kept.")
@click.option(
    "--protocol", type=click.Choice(["grpc", "http"]), default="grpc", show_default=True, help="How it is asked."
)
@click.option("--samples", type=click.Path(path_type=Path), help="Ask with the rows of this .npz.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of search and arrivals.")
@click.option(
    "--engine", type=click.Choice(["local", "native"]), help="The tritonserver.  [default: native, else local]"
)
@config_option
@click.option("--dry-run", is_flag=True, help="Search and show the change; publish and keep nothing.")
@click.option("--promote", is_flag=True, help="Promote the version that is published.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, /, *, as_json: bool, **given: Any) -> None:
    """Find the batching, instances and threads that sustain the highest rate within a bound, by load on a real server.

    The winner must beat the version's own configuration beyond noise; then it is published as the next version, with
    the same artifact. Exit code 0 also where the config stays; 1 where none keeps the bound at any rate.
    """
    from deploy.report.stages import Stages
    from deploy.tune.run import tune

    request = _request(ctx, **given)
    with Stages(quiet=as_json) as stages:
        result = tune(request, progress=stages)
    _show(result, as_json=as_json)
    end(ctx, result.exit_code, problem=result.problem)


def _request(
    ctx: click.Context, *, p99_ms: float, seconds_per_probe: float, engine: Any, **given: Any
) -> "TuneRequest":
    from deploy.cli.config import own_command
    from deploy.serve.engines import find_engine
    from deploy.slo.records import Bound
    from deploy.tune.request import TuneRequest

    return TuneRequest(
        bound=Bound(kind="latency", q=0.99, limit=p99_ms),
        engine=find_engine(engine),
        probe_seconds=seconds_per_probe,
        command=own_command(ctx, sys.argv[1:]),
        **given,
    )


def _show(result: "TuneResult", *, as_json: bool) -> None:
    published = str(result.published.version) if result.published else None
    if as_json:
        facts = {
            **result.evidence.plain(),
            "difference": result.difference,
            "published": published,
            "promoted": bool(result.published and result.published.promoted),
            "attestation": str(result.attestation) if result.attestation else None,
            "storage": str(result.storage),
            **problem_facts(result.problem),
            "exit_code": int(result.exit_code),
        }
        click.echo(json.dumps(facts, indent=2))
        return
    from deploy.report.terminal import show
    from deploy.report.tune_terminal import tune_table

    show(tune_table(result.evidence, result.difference))
    if result.published:
        promoted = "promoted" if result.published.promoted else "not promoted"
        click.echo(f"published {published}, {promoted}, digest {result.published.digest[:12]}")
    tell_kept(result.attestation)
