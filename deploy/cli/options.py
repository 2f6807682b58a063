"""Options that several commands share, so that they are spelled, parsed and explained once.

Owns parsing only. `inspect` and `package` use `checkpoint_options`, a command with a table in a file `config_option`.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from deploy.checkpoint.model import CheckpointRequest
from deploy.cli.types import Shape


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


_CHECKPOINT_OPTIONS = (
    click.argument("ckpt", type=click.Path(path_type=Path)),
    click.option("--arch", metavar="NAME", help="The torchvision builder, where the weights do not say which."),
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
