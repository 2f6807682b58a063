"""Options that several commands share, so that they are spelled, parsed and explained once.

Owns parsing only. `inspect` and `package` use `checkpoint_options`, a command with a table in a file `config_option`.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.checkpoint.model import CheckpointRequest
from deploy.cli.types import Shape
from deploy.errors import UsageError

if TYPE_CHECKING:
    from deploy.release.rollout import ServerAddress


def config_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--config` to a command: its table of that file stands where the command line says nothing."""

    def read(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
        if path is not None:
            from deploy.cli.config import read_defaults

            context.default_map = read_defaults(path, context)

    decorated: Callable[..., Any] = click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=read,
        help="A deploy.toml, which says what no option says.",
    )(function)
    return decorated


_SERVER_OPTIONS = (
    click.option("--url", metavar="HOST:PORT", help="See this server take it up; undo a promotion that it does not."),
    click.option("--protocol", type=click.Choice(["grpc", "http"]), help="How the server is told.  [default: grpc]"),
    click.option(
        "--wait",
        type=click.FloatRange(min=0, min_open=True),
        metavar="S",
        help="Seconds for the server to answer with it.  [default: 120]",
    ),
)


def server_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--url`, `--protocol` and `--wait` to a command, which gets them as `server: ServerAddress | None`."""

    @wraps(function)
    def with_server(*args: Any, url: str | None, protocol: Any, wait: float | None, **given: Any) -> Any:
        return function(*args, server=_server(url, protocol, wait), **given)

    decorated: Callable[..., Any] = with_server
    for option in reversed(_SERVER_OPTIONS):
        decorated = option(decorated)
    return decorated


def _server(url: str | None, protocol: Any, wait: float | None) -> "ServerAddress | None":
    """Where the server is; None without one. Raises UsageError for an option that says nothing without one."""
    if url is None:
        if protocol or wait:
            raise UsageError(
                f"{'--protocol' if protocol else '--wait'} was given without a server",
                expected="--url HOST:PORT beside it",
                fix="add --url, or leave it out",
            )
        return None
    from deploy.release.rollout import ServerAddress
    from deploy.slo.request import parse_url

    address, chosen = parse_url(url, protocol)
    patience = {} if wait is None else {"seconds": wait}
    return ServerAddress(address=address, protocol=chosen, **patience)


_CHECKPOINT_OPTIONS = (
    click.argument("ckpt", type=click.Path(path_type=Path)),
    click.option("--arch", metavar="NAME", help="The torchvision builder or timm/NAME, where weights do not say."),
    click.option("--factory", metavar="PKG.MOD:FUNC", help="A function that gives your own architecture's module."),
    click.option("--weights", type=click.Choice(["ema", "raw"]), help="Which weights, where the file has both."),
    click.option(
        "--input-shape",
        "input_shapes",
        multiple=True,
        type=Shape(),
        metavar="C,H,W",
        help="An input's shape without the batch, such as 3,224,224; once per input.",
    ),
    click.option("--trust-pickle", is_flag=True, help="Unpickle any type: runs code from the file."),
)


def checkpoint_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the argument CKPT and its options to a command, which gets them as one `request: CheckpointRequest`."""

    @wraps(function)
    def with_request(*, ckpt: Path, **given: Any) -> Any:
        named = {name: given.pop(name) for name in ("arch", "factory", "weights", "input_shapes", "trust_pickle")}
        return function(request=CheckpointRequest(path=ckpt, **named), **given)

    decorated: Callable[..., Any] = with_request
    for option in reversed(_CHECKPOINT_OPTIONS):
        decorated = option(decorated)
    return decorated
