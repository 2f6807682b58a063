"""Values that are written one way on the command line and another in a file.

Owns how each is read. Used by options and commands; `deploy.cli.config` asks them for the type that a file has.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import click
from annotated_types import Gt, Len

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


_TWO = Annotated[tuple[Annotated[int, Gt(0)], ...], Len(2, 2)]


class Numbers(Written):
    """One number per channel: 0.485,0.456,0.406 or [0.485, 0.456, 0.406]."""

    name = "numbers"
    annotation = tuple[float, ...]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers; whatever is none is refused."""
        try:
            numbers = tuple(float(part) for part in (value.split(",") if isinstance(value, str) else value))
        except ValueError:
            numbers = ()
        if not numbers:
            self.fail(f"{value!r} is not a list of numbers; expected such as 0.485,0.456,0.406", param, ctx)
        return numbers


class Edges(Written):
    """The shorter edge, or height and width: 256, or 224,224 or [224, 224]."""

    name = "edges"
    annotation = Annotated[int, Gt(0)] | _TWO

    def written(self, value: Any) -> str:
        """The size as the command line takes it."""
        return str(value) if isinstance(value, int) else super().written(value)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | tuple[int, int]:
        """The pixels; anything but one or two positive integers is refused."""
        parts = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else list(value)
        try:
            sizes = [int(part) for part in parts]
        except ValueError:
            sizes = []
        if len(sizes) not in (1, 2) or min(sizes) < 1:
            self.fail(f"{value!r} is no size in pixels; expected the shorter edge, or height,width", param, ctx)
        return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


class Size(Written):
    """Height and width in pixels: 480,640 or [480, 640]."""

    name = "size"
    annotation = _TWO

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """The two sizes; anything else is refused."""
        size = Edges().convert(value, param, ctx)
        if isinstance(size, int):
            self.fail(f"{value!r} is one number; expected height,width", param, ctx)
        return size
