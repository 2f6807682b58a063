"""How what lies in a repository now is told: a version that was published, and a result kept beside one.

Owns words only. Called by what `package` prints for each of its ways, and by the commands that attest.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from deploy.errors import DeployError, ExitCode
    from deploy.records import Record
    from deploy.repository.publish import PublishedVersion


def published_line(published: "PublishedVersion", *, remark: str = "") -> str:
    """Where it lies, and whether it is served; `remark` stands behind that."""
    promoted = "promoted" if published.promoted else "not promoted: `deployctl promote` makes Triton serve it"
    return f"published: {published.version.folder} ({promoted}{remark})"


def published_facts(published: "PublishedVersion") -> dict[str, Any]:
    """The same as JSON has it."""
    return {
        "name": published.version.name,
        "version": published.version.number,
        "folder": str(published.version.folder),
        "digest": published.digest,
        "promoted": published.promoted,
    }


def record_json(
    record: "Record", attestation: Path | None, exit_code: "ExitCode", *, problem: "DeployError | None" = None
) -> str:
    """A result as JSON has it, with where it is kept, null where it is not, and how the command ends.

    `problem` is what went wrong once there was a result: machines read one object, whatever happened.
    """
    kept = str(attestation) if attestation else None
    facts = {**record.plain(), "attestation": kept, **problem_facts(problem), "exit_code": int(exit_code)}
    return json.dumps(facts, indent=2)


def problem_facts(problem: "DeployError | None") -> dict[str, Any]:
    """The key `error`, as a command without a result has it; empty where nothing went wrong."""
    return {"error": problem.plain()} if problem else {}


def end(ctx: click.Context, exit_code: "ExitCode", *, problem: "DeployError | None" = None) -> NoReturn:
    """End the command whose result was shown; `problem` is said on stderr, since stdout has its object already."""
    if problem is not None:
        click.echo(f"error: {problem}", err=True)
    ctx.exit(exit_code)


def tell_kept(attestation: Path | None) -> None:
    """Say where a result is kept, which is talk and no result; nothing where it is not."""
    if attestation is not None:
        click.echo(f"kept as {attestation}", err=True)
