"""`deployctl diff REPOSITORY NAME OLD NEW`: what would change if one version took another's traffic.

Owns the options and the files they ask for. The work is `deploy.release.diff`'s.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.options import config_option
from deploy.cli.published import end, record_json, tell_kept
from deploy.cli.types import POSITIVE, SECONDS, Amount
from deploy.errors import DeployError, UsageError

if TYPE_CHECKING:
    from deploy.errors import ExitCode
    from deploy.release.diff import DiffRequest, DiffResult

_SHARE = Amount(min=0, max=1)
_LIMITS = ("max_flips", "max_flipped_rows", "max_accuracy_drop", "max_error", "max_slowdown", "max_growth")


@click.command("diff")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("name")
@click.argument("old")
@click.argument("new")
@click.option("--samples", type=click.Path(path_type=Path), help="Ask both with the rows of this .npz too.")
@click.option("--max-flips", type=_SHARE, metavar="SHARE", help="The share of decisions that may flip in traffic.")
@click.option("--max-flipped-rows", type=click.IntRange(min=0), metavar="N", help="Of these samples N may flip.")
@click.option("--max-accuracy-drop", type=_SHARE, metavar="SHARE", help="By how much accuracy may fall; takes labels.")
@click.option("--max-error", type=POSITIVE, metavar="X", help="How far apart outputs may be, in eager's own error.")
@click.option("--max-slowdown", type=POSITIVE, metavar="X", help="The p50 may be at most X times the older one's.")
@click.option("--max-growth", type=POSITIVE, metavar="X", help="The artifact may have at most X times the bytes.")
@click.option("--no-latency", is_flag=True, help="Leave out the race; the rest takes seconds.")
@click.option(
    "--batch", "sizes", type=click.IntRange(min=1), multiple=True, metavar="B", help="A batch size to race at."
)
@click.option("--seconds-per-cell", type=SECONDS, help="Time for each at each batch size.  [default: 2.5]")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of each version.  [default: one per core]")
@click.option("--timeout", type=SECONDS, default=600.0, show_default=True, metavar="S", help="Seconds for each step.")
@click.option(
    "--markdown", type=click.Path(path_type=Path, dir_okay=False), help="Write a summary for a CI job's page."
)
@config_option
@click.option("--no-attest", is_flag=True, help="Print the result only; do not keep it beside the version.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, /, *, as_json: bool, markdown: Path | None, **given: Any) -> None:
    """Ask two versions of NAME the same and race them; OLD and NEW are numbers, or `promoted`.

    Says which decisions flip, how far outputs are apart, and what differs in latency, size, config, checkpoint and
    environment. Exit code 0 without limits or where each is kept; 1 where one is not, or stays undecided.
    """
    from deploy.release.diff import diff
    from deploy.report.stages import Stages

    request = _request(ctx, given)
    with Stages(quiet=as_json) as stages:
        result = diff(request, progress=stages)
    problem = result.not_kept
    try:
        if markdown is not None:
            _write(result, markdown)
    except DeployError as error:
        problem = problem or error
    code = problem.exit_code if problem else result.exit_code
    _show(result, code, problem, as_json=as_json)
    end(ctx, code, problem=problem)


def _request(ctx: click.Context, given: dict[str, Any]) -> "DiffRequest":
    """The options as the library takes them. Raises UsageError if two do not go together."""
    from deploy.cli.config import own_command
    from deploy.release.diff import DiffRequest, Race
    from deploy.release.gates import Limits
    from deploy.validate.machine import default_threads

    limits = Limits(**{name: given.pop(name) for name in _LIMITS})
    limits.check(latency=not given["no_latency"])
    seconds, sizes = given.pop("seconds_per_cell"), given.pop("sizes")
    if given.pop("no_latency"):
        if seconds is not None or sizes:
            raise UsageError(
                f"{'--batch' if sizes else '--seconds-per-cell'} was given and latency left out",
                expected="no --no-latency beside it",
                fix="leave out one of the two",
            )
        race = None
    else:
        race = Race(sizes=sizes, seconds_per_cell=seconds or Race().seconds_per_cell)
    return DiffRequest(
        limits=limits,
        race=race,
        attest=not given.pop("no_attest"),
        threads=given.pop("threads") or default_threads(),
        command=own_command(ctx, sys.argv[1:]),
        **given,
    )


def _write(result: "DiffResult", path: Path) -> None:
    from deploy.files import disk_errors_explained, write_atomically
    from deploy.report.diff_markdown import diff_markdown

    with disk_errors_explained(f"writing {path}"):
        write_atomically(path, diff_markdown(result.evidence).encode())


def _show(result: "DiffResult", code: "ExitCode", problem: DeployError | None, *, as_json: bool) -> None:
    evidence = result.evidence
    if as_json:
        click.echo(record_json(evidence, result.attestation, code, problem=problem))
        return
    from deploy.report.diff_terminal import diff_table
    from deploy.report.terminal import show

    show(diff_table(evidence))
    tell_kept(result.attestation)
