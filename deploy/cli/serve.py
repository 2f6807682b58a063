"""`deployctl serve REPOSITORY [NAME[:N] ...]`: a real tritonserver until ctrl-C, and a client to copy.

Owns the words on the terminal. The work is `deploy.serve.serving`'s.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.serve.engines import KINDS, EngineKind

if TYPE_CHECKING:
    from deploy.serve.server import TritonServer
    from deploy.serve.snippet import ClientExample

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PORT = click.IntRange(1, 65535)


@click.command("serve")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("references", metavar="[NAME[:N]]...", nargs=-1)
@click.option("--http-port", "http", type=_PORT, help="Chosen free unless given.")
@click.option("--grpc-port", "grpc", type=_PORT, help="Chosen free unless given.")
@click.option("--metrics-port", "metrics", type=_PORT, help="Chosen free unless given.")
@click.option("--host", default=_LOOPBACK[0], show_default=True, help="The address to listen on.")
@click.option("--engine", "kind", type=click.Choice(KINDS), help="The tritonserver to serve with.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object once the server is ready.")
def command(
    *,
    repository: Path,
    references: tuple[str, ...],
    host: str,
    kind: EngineKind | None,
    as_json: bool,
    **ports: int | None,
) -> None:
    """Serve versions of REPOSITORY: NAME (its promoted version) or NAME:N, promoted or not; all promoted ones if none.

    Ends with 0 on ctrl-C once the server was ready.
    """
    from deploy.serve.engines import find_engine
    from deploy.serve.ports import WantedPorts
    from deploy.serve.server import ServerOptions
    from deploy.serve.serving import chosen_versions, serving
    from deploy.serve.snippet import ClientExample

    options = ServerOptions(host=host, wanted=WantedPorts(**ports))
    versions = chosen_versions(repository, references)
    engine = find_engine(kind)
    if host not in _LOOPBACK:
        click.echo(f"warning: whoever reaches {host} can ask this server; it has no authentication", err=True)
    click.echo(f"starting tritonserver for {', '.join(map(str, versions))}", err=True)
    with serving(versions, engine=engine, options=options) as server:
        # Only now: before, nothing is known of their files.
        examples = [ClientExample.of(version) for version in versions]
        if as_json:
            click.echo(json.dumps(_as_dict(server, examples)))
        else:
            _show(server, examples)
        try:
            server.wait()
        except KeyboardInterrupt:
            click.echo("stopping", err=True)


def _show(server: "TritonServer", examples: list["ClientExample"]) -> None:
    names = ", ".join(example.about for example in examples)
    click.echo(f"ready in {server.ready_seconds:.1f} s: {names} ({server.engine.mode}, Triton {server.engine.release})")
    click.echo(f"  http     {server.http_address}")
    click.echo(f"  grpc     {server.grpc_address}")
    click.echo(f"  metrics  http://{server.metrics_address}/metrics")
    click.echo(f"  log      {server.log}")
    for example in examples:
        click.echo(f"\n# {example.version} from Python:\n{example.python(server.grpc_address)}")
        click.echo(f"# {example.version} from a shell:\n{example.curl(server.http_address)}")
    click.echo("press ctrl-C to stop", err=True)


def _as_dict(server: "TritonServer", examples: list["ClientExample"]) -> dict[str, object]:
    models = [
        {
            "name": example.version.name,
            "version": example.version.number,
            "precision": example.precision,
            "python": example.python(server.grpc_address),
            "curl": example.curl(server.http_address),
        }
        for example in examples
    ]
    return {
        "http": server.http_address,
        "grpc": server.grpc_address,
        "metrics": server.metrics_address,
        "log": str(server.log),
        "mode": server.engine.mode,
        "engine": server.engine.kind,
        "release": server.engine.release,
        "models": models,
    }
