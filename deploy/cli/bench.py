"""`deployctl bench REPOSITORY NAME[:N]`: a published version's latency, against eager or another version.

Owns the options and the words on the terminal. The work is `deploy.bench`'s.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.published import end, record_json, tell_kept
from deploy.cli.types import POSITIVE, SECONDS
from deploy.errors import UsageError

if TYPE_CHECKING:
    from deploy.bench import BenchRequest, BenchResult


@click.command("bench")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("reference", metavar="NAME[:N]")
@click.option("--compare", type=click.IntRange(min=1), metavar="N", help="Race it against version N of the same model.")
@click.option("--max-slowdown", type=POSITIVE, metavar="X", help="Pass only if its p50 is at most X times that of N.")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), metavar="CKPT", help="What it was made from, to run it eagerly."
)
@click.option("--base", type=click.Path(path_type=Path), metavar="CKPT", help="What a LoRA adapter was trained on.")
@click.option("--factory", metavar="PKG.MOD:FUNC", help="The architecture's function, if the checkpoint needed one.")
@click.option("--trust-pickle", is_flag=True, help="Unpickle any type: runs code from the checkpoint.")
@click.option(
    "--batch", "sizes", type=click.IntRange(min=1), multiple=True, metavar="B", help="A batch size; may be repeated."
)
@click.option("--thorough", is_flag=True, help="Measure every power of two up to the largest batch.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of each.  [default: one per core]")
@click.option(
    "--seconds-per-cell", type=SECONDS, default=2.5, show_default=True, help="Time for each at each batch size."
)
@click.option(
    "--timeout", type=SECONDS, default=600.0, show_default=True, metavar="S", help="Seconds for each child's step."
)
@click.option("--no-attest", is_flag=True, help="Print the result only; do not keep it beside the version.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, /, *, as_json: bool, **given: Any) -> None:
    """Measure the latency of NAME's promoted version, or of NAME:N, on the samples it was proven with.

    Each runs in a process of its own, in turns, with a control that shows what noise alone does. Exit code 0 if it was
    measured, and is not slower than asked; 1 if it is, or that stays undecided; 4 if somebody did not last.
    """
    from deploy.bench import bench
    from deploy.report.stages import Stages

    request = _request(given)
    with Stages(quiet=as_json) as stages:
        result = bench(request, progress=stages)
    _show(result, as_json=as_json)
    end(ctx, result.exit_code, problem=result.not_kept)


def _request(given: dict[str, Any]) -> "BenchRequest":
    """The options as the library takes them. Raises UsageError if two do not go together."""
    from deploy.bench import BenchRequest
    from deploy.checkpoint.model import CheckpointRequest
    from deploy.cli.config import own_command
    from deploy.validate.machine import default_threads

    path, said = given.pop("checkpoint"), {name: given.pop(name) for name in ("factory", "base", "trust_pickle")}
    if path is None and any(said.values()):
        option = next(name for name, value in said.items() if value).replace("_", "-")
        raise UsageError(
            f"--{option} was given without a checkpoint",
            expected="--checkpoint beside it",
            fix="add --checkpoint CKPT",
        )
    eager = CheckpointRequest(path=path, **said) if path else None
    return BenchRequest(
        eager=eager,
        attest=not given.pop("no_attest"),
        threads=given.pop("threads") or default_threads(),
        command=own_command(click.get_current_context(), sys.argv[1:]),
        **given,
    )


def _show(result: "BenchResult", *, as_json: bool) -> None:
    evidence = result.evidence
    if as_json:
        click.echo(record_json(evidence, result.attestation, result.exit_code, problem=result.not_kept))
        return
    from deploy.report.terminal import latency_table, show, verdict_lines

    show(latency_table(evidence.latency), verdict_lines({evidence.version: evidence.latency.judgement}))
    if evidence.checkpoint is None:
        click.echo("eager took no part: no --checkpoint was given, so nothing is said against it", err=True)
    tell_kept(result.attestation)
