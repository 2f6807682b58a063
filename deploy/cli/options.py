"""Options that several commands share, so that they are spelled, parsed and explained once.

Owns parsing only. `inspect` and `package` use `checkpoint_options`, a command with a table in a file `config_option`.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.checkpoint.model import CheckpointRequest, PreprocessingRequest
from deploy.cli.types import SECONDS, Dynamic, Edges, Numbers, Shape, Size, Values
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
        type=SECONDS,
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
    click.option("--base", type=click.Path(path_type=Path), metavar="CKPT", help="What a LoRA adapter was trained on."),
    click.option("--arch", metavar="NAME", help="The torchvision builder or timm/NAME, where weights do not say."),
    click.option(
        "--head",
        metavar="LAYERS",
        help="The head that training put on a torchvision or timm network, such as 'Dropout, Linear, ReLU, Linear'.",
    ),
    click.option("--factory", metavar="PKG.MOD:FUNC", help="A function that gives your own architecture's module."),
    click.option("--weights", type=click.Choice(["ema", "raw"]), help="Which weights, where the file has both."),
    click.option(
        "--input-shape",
        "inputs",
        multiple=True,
        type=Shape(),
        metavar="[NAME=][DTYPE:]SIZES",
        help="An input's shape without the batch, such as 3,224,224 or ids=int64:128; once per input. "
        "scalar: one number per row. NAME=none: None.",
    ),
    click.option(
        "--dynamic",
        multiple=True,
        type=Dynamic(),
        metavar="NAME:AXES[=MIN..MAX]",
        help="Axes whose size requests choose, such as image:2,3=128..512; the batch is axis 0 and always one.",
    ),
    click.option(
        "--values",
        multiple=True,
        type=Values(),
        metavar="NAME=LOW..HIGH",
        help="What an integer input takes, such as ids=0..30521; NAME=mask: ones, then padding. Default: 0 and 1.",
    ),
    click.option("--trust-pickle", is_flag=True, help="Unpickle any type: runs code from the file."),
)

_PREPROCESSING_OPTIONS = (
    click.option(
        "--fuse-preprocess/--no-fuse-preprocess",
        "fuse",
        help="Take uint8 images, scaled and normalised inside the graph as training did.",
    ),
    click.option(
        "--image-size",
        type=Size(),
        metavar="H,W",
        help="With --fuse-preprocess: images of this size come, and are resized and cropped inside.",
    ),
    click.option(
        "--mean", type=Numbers(), metavar="R,G,B", help="What training subtracted, where the file says it not."
    ),
    click.option("--std", type=Numbers(), metavar="R,G,B", help="What training divided by."),
    click.option("--resize", type=Edges(), metavar="PX", help="The shorter edge in training, or height,width."),
    click.option("--crop", type=click.IntRange(min=1), metavar="PX", help="The centre crop of training."),
    click.option(
        "--interpolation",
        type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]),
        help="How training resized.",
    ),
)


_CHECKPOINT_FIELDS = ("arch", "head", "factory", "base", "weights", "inputs", "dynamic", "values", "trust_pickle")


def checkpoint_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the argument CKPT and its options to a command, which gets them as one `request: CheckpointRequest`."""

    @wraps(function)
    def with_request(*, ckpt: Path, **given: Any) -> Any:
        named = {name: given.pop(name) for name in _CHECKPOINT_FIELDS}
        preprocessing = PreprocessingRequest(**{one.name: given.pop(one.name) for one in fields(PreprocessingRequest)})
        return function(request=CheckpointRequest(path=ckpt, preprocessing=preprocessing, **named), **given)

    decorated: Callable[..., Any] = with_request
    for option in reversed((*_CHECKPOINT_OPTIONS, *_PREPROCESSING_OPTIONS)):
        decorated = option(decorated)
    return decorated
