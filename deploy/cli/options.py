"""Options that several commands share, so that they are spelled, parsed and explained once.

Owns parsing only. `inspect` and `package` use `checkpoint_options`.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from deploy.checkpoint.model import CheckpointRequest


def _parse_shapes(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[int, ...], ...]:
    return tuple(_parse_shape(value) for value in values)


def _parse_shape(value: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in value.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise click.BadParameter(f"{value!r} is not a shape; expected positive integers, such as 3,224,224")
    return sizes


_CHECKPOINT_OPTIONS = (
    click.argument("ckpt", type=click.Path(path_type=Path)),
    click.option("--arch", metavar="NAME", help="The torchvision builder, where the weights do not say which."),
    click.option("--factory", metavar="PKG.MOD:FUNC", help="A function that gives your own architecture's module."),
    click.option("--weights", type=click.Choice(["ema", "raw"]), help="Which weights, where the file has both."),
    click.option(
        "--input-shape",
        "input_shapes",
        multiple=True,
        metavar="C,H,W",
        callback=_parse_shapes,
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
