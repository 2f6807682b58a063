"""Values that are written one way on the command line and another in a file.

Owns how each is read. Used by options and commands; `deploy.cli.config` asks them for the type that a file has.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import click
from annotated_types import Gt

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    # Older releases of click do not know it as generic.
    ParamType = click.ParamType


class Written(ParamType):
    """A list that is written with commas on the command line, and as a list in a file as `annotation` has it."""

    annotation: Any

    def written(self, value: Sequence[Any]) -> str:
        """The list as the command line takes it."""
        return ",".join(map(str, value))


class Shape(Written):
    """Sizes without the batch: 3,224,224 or [3, 224, 224]."""

    name = "shape"
    annotation = tuple[Annotated[int, Gt(0)], ...]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The sizes; whatever is not a positive integer is refused."""
        try:
            sizes = tuple(int(part) for part in (value.split(",") if isinstance(value, str) else value))
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            self.fail(f"{value!r} is not a shape; expected positive integers, such as 3,224,224", param, ctx)
        return sizes
