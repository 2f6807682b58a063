"""`deployctl slo NAME[:N]`: whether a running server keeps its latency objectives.

Owns the options and the files they ask for. The work is `deploy.slo`'s.
"""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.options import config_option
from deploy.cli.published import end, record_json, tell_kept
from deploy.cli.types import MILLISECONDS, POSITIVE, SECONDS, SECONDS_OR_ZERO, Amount
from deploy.errors import DeployError, UnfinishedError, UsageError
from deploy.settings import LEAST_SHARE

if TYPE_CHECKING:
    from deploy.errors import ExitCode
    from deploy.repository.layout import Version
    from deploy.slo.records import RateEvidence, SloEvidence
    from deploy.slo.request import SloRequest
    from deploy.slo.settings import SloSettings
    from deploy.slo.stream import StreamQuestion

_SHARE = Amount(min=LEAST_SHARE, max=1, max_open=True)
_TOKENS = 32
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("slo")
@click.argument("reference", metavar="NAME[:N]")
@click.option("--url", metavar="HOST:PORT", help="Where the server listens, at the port of the protocol.")
@click.option("--protocol", type=click.Choice(["grpc", "http"]), help="How the server is asked.  [default: grpc]")
@click.option("--p50-ms", type=MILLISECONDS, help="Half of the queries within so many milliseconds.")
@click.option("--p90-ms", type=MILLISECONDS, help="90 % of the queries.")
@click.option("--p95-ms", type=MILLISECONDS, help="95 % of the queries.")
@click.option("--p99-ms", type=MILLISECONDS, help="99 % of the queries.")
@click.option("--p999-ms", type=MILLISECONDS, help="99.9 % of the queries.")
@click.option("--llm/--no-llm", default=None, help="Ask a language model over generate_stream, token by token.")
@click.option("--ttft-p50-ms", type=MILLISECONDS, help="llm: half of the first tokens within so many milliseconds.")
@click.option("--ttft-p99-ms", type=MILLISECONDS, help="llm: 99 % of the first tokens.")
@click.option("--itl-p50-ms", type=MILLISECONDS, help="llm: half of the queries need so long per further token.")
@click.option("--itl-p99-ms", type=MILLISECONDS, help="llm: 99 % of the queries.")
@click.option("--tokens", type=click.IntRange(min=2), help="llm: tokens per answer.  [default: 32]")
@click.option("--prompts", type=_FILE, metavar="FILE", help="llm: one prompt a line; default: six of our own.")
@click.option("--error-rate", type=_SHARE, help="The share of queries that may fail, such as 0.001.")
@click.option("--rate", type=POSITIVE, help="Queries per second, as Poisson arrivals.")
@click.option(
    "--repository", type=click.Path(path_type=Path), help="Ask with the version's own samples; keep the result."
)
@click.option("--samples", type=click.Path(path_type=Path), help="Ask with the rows of this .npz.")
@click.option("--duration", type=SECONDS, help="The longest the load lasts, in seconds.  [default: 60]")
@click.option("--min-duration", type=SECONDS_OR_ZERO, help="The shortest a pass rests on.  [default: 30]")
@click.option("--warm-up", type=SECONDS_OR_ZERO, help="Seconds of load that do not count.  [default: 2]")
@click.option("--max-queries", type=click.IntRange(min=1), help="The most queries that count.")
@click.option(
    "--timeout-ms",
    type=MILLISECONDS,
    help="The client's deadline.  [default: 10 times the largest bound, at least 1 s; llm: 30 s]",
)
@click.option("--confidence", type=Amount(0.5, 1, True, True), help="Of a verdict.  [default: 0.99]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Of arrivals and samples.  [default: 0]")
@click.option("--find-rate", is_flag=True, help="Bisect the highest rate that passes, beginning at --rate.")
@config_option
@click.option("--junit", type=_FILE, help="Write the verdicts as JUnit XML.")
@click.option("--markdown", type=_FILE, help="Write a summary that fits a CI job's page.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(ctx: click.Context, /, *, as_json: bool, find_rate: bool, **given: Any) -> None:
    """Load a running server with real samples and say whether it keeps its bounds: pass, fail or undecided.

    Arrivals are open-loop: nobody waits for an answer before asking again, and latency counts from the scheduled
    time. Exit code 0 for a pass, 1 for fail and undecided, 4 for a run that proves nothing.
    """
    from deploy.report.stages import Stages
    from deploy.slo.rates import find_rate as find
    from deploy.slo.run import check_slo, pinned

    files = {"junit": given.pop("junit"), "markdown": given.pop("markdown")}
    request = pinned(_request(**given))
    for line in () if find_rate else request.cannot_pass():
        click.echo(f"warning: {line}", err=True)
    version = _check_outputs(request, files)
    try:
        with Stages(quiet=as_json) as stages:
            result = find(request, progress=stages) if find_rate else check_slo(request, progress=stages)
    except (DeployError, KeyboardInterrupt) as error:
        # Else those of an earlier run would be taken for this one's.
        _write_unfinished(request, files, error if isinstance(error, DeployError) else UnfinishedError("interrupted"))
        raise
    kept, problem = _keep(version, "rate" if find_rate else "slo", result)
    # What took a minute of load is not lost with a disk that is full by now.
    try:
        _write_files(result, files)
    except DeployError as error:
        problem = problem or error
    code = problem.exit_code if problem else result.exit_code
    _print(result, kept, code, problem, as_json=as_json)
    end(ctx, code, problem=problem)


def _request(*, reference: str, **given: Any) -> "SloRequest":
    """The request that the options make. Raises UsageError if something essential was said nowhere."""
    from deploy.slo.request import SloRequest, parse_url
    from deploy.slo.settings import SloSettings

    settings = SloSettings(**given)
    if settings.url is None or settings.rate is None:
        missing = "--url" if settings.url is None else "--rate"
        raise UsageError(f"{missing} is missing", expected="both --url HOST:PORT and --rate, or [slo] in --config")
    stream = _stream(settings)
    protocol = settings.protocol or ("http" if stream and "://" not in settings.url else None)
    address, protocol = parse_url(settings.url, protocol)
    return SloRequest(
        reference=reference,
        url=address,
        protocol=protocol,
        bounds=settings.bounds,
        rate=settings.rate,
        repository=settings.repository,
        samples=settings.samples,
        stream=stream,
        **_renamed(settings),
    )


def _stream(settings: "SloSettings") -> "StreamQuestion | None":
    """What a language model is asked, None without --llm. Raises UsageError for an option that needs it."""
    from deploy.slo.prompts import read_prompts
    from deploy.slo.stream import StreamQuestion

    if not settings.llm:
        given = next((name for name in ("tokens", "prompts") if getattr(settings, name) is not None), None)
        if given is not None:
            raise UsageError(f"--{given} was given without --llm", expected="--llm beside it", fix="add --llm")
        return None
    if settings.samples is not None:
        raise UsageError("--samples was given beside --llm", expected="--prompts FILE", fix="leave --samples out")
    return StreamQuestion(prompts=read_prompts(settings.prompts), tokens=settings.tokens or _TOKENS)


def _renamed(settings: "SloSettings") -> dict[str, Any]:
    """What the request calls otherwise, where it was said at all; its own defaults stand for the rest."""
    found = {
        "seconds": settings.duration,
        "min_seconds": settings.min_duration,
        "warm_up_seconds": settings.warm_up,
        "max_queries": settings.max_queries,
        "deadline": settings.timeout_ms and settings.timeout_ms / 1000,
        "confidence": settings.confidence,
        "seed": settings.seed,
    }
    return {name: value for name, value in found.items() if value is not None}


def _check_outputs(request: "SloRequest", files: dict[str, Path | None]) -> "Version | None":
    """The version beside which the result is to be kept, None without a repository.

    Raises UsageError, before any load, if a result could not be written to where it was asked for.
    """
    from deploy.files import require_writable
    from deploy.repository.attest import require_attestable
    from deploy.slo.question import find_subject

    named = [path for path in files.values() if path is not None]
    for path in named:
        require_writable(path)
    if len({path.resolve() for path in named}) < len(named):
        raise UsageError(
            f"--junit and --markdown are both {named[0]}", expected="a file for each", fix="choose another for one"
        )
    subject = find_subject(request.reference, request.repository)
    if subject.version is not None:
        require_attestable(subject.version, fix="ask with --samples instead of --repository to print the result only")
    return subject.version


def _keep(
    version: "Version | None", kind: str, record: "SloEvidence | RateEvidence"
) -> tuple[Path | None, DeployError | None]:
    """Keep the result beside the version, where a repository is at hand: where it lies, or why it lies nowhere."""
    from deploy.repository.attest import attest_or_tell

    if version is None or record.version_digest is None:
        return None, None
    return attest_or_tell(version, kind, record, digest=record.version_digest)


def _print(
    evidence: "SloEvidence | RateEvidence",
    kept: Path | None,
    code: "ExitCode",
    problem: DeployError | None,
    *,
    as_json: bool,
) -> None:
    from deploy.report.slo_terminal import rate_table, slo_table
    from deploy.report.terminal import show
    from deploy.slo.records import SloEvidence

    if as_json:
        click.echo(record_json(evidence, kept, code, problem=problem))
        return
    show(slo_table(evidence) if isinstance(evidence, SloEvidence) else rate_table(evidence))
    tell_kept(kept)


def _write_files(evidence: "SloEvidence | RateEvidence", files: dict[str, Path | None]) -> None:
    """Write what was asked for: of a search the run that confirms it, or else that no rate passed."""
    from deploy.report.junit import junit_xml
    from deploy.report.markdown import slo_markdown
    from deploy.slo.records import SloEvidence

    shown = evidence if isinstance(evidence, SloEvidence) else evidence.final or evidence
    makers = {"junit": junit_xml, "markdown": slo_markdown}
    for kind, path in files.items():
        if path is not None:
            _write(path, makers[kind](shown))


def _write_unfinished(request: "SloRequest", files: dict[str, Path | None], error: DeployError) -> None:
    """Write into the files that were asked for why there is no result; what ended the run is the error to be told."""
    from deploy.report.junit import unfinished_xml
    from deploy.report.markdown import unfinished_markdown

    makers = {"junit": unfinished_xml, "markdown": unfinished_markdown}
    for kind, path in files.items():
        if path is not None:
            with suppress(DeployError):
                _write(path, makers[kind](request.reference, error))


def _write(path: Path, text: str) -> None:
    from deploy.files import disk_errors_explained, write_atomically

    with disk_errors_explained(f"writing {path}"):
        write_atomically(path, text.encode())
