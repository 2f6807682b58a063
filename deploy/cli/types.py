"""Values that are written one way on the command line and another in a file.

Owns how each is read. Used by options and commands; `deploy.cli.config` asks them for the type that a file has.
"""

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import click
from annotated_types import Gt, Len

from deploy.checkpoint.model import DynamicRequest, InputRequest, ValuesRequest
from deploy.settings import LONGEST_MS, LONGEST_SECONDS, Place

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    # Older releases of click do not know it as generic.
    ParamType = click.ParamType


_NAME = r"(?P<name>[A-Za-z_]\w*)"
_INPUT = re.compile(
    rf"(?:{_NAME}=)?(?:(?P<dtype>[a-z]+\d*):)?(?P<sizes>scalar|[1-9]\d*(?:,[1-9]\d*)*)|(?P<absent>[A-Za-z_]\w*)=none"
)
_DYNAMIC = re.compile(
    rf"{_NAME}:(?P<axes>\d+(?:@[A-Za-z_]\w*)?(?:,\d+(?:@[A-Za-z_]\w*)?)*)(?:=(?P<low>\d+)\.\.(?P<high>\d+))?"
)
_VALUES = re.compile(rf"{_NAME}=(?:mask|(?P<low>-?\d+)\.\.(?P<high>-?\d+))")


class Amount(click.FloatRange):
    """A number within bounds: NaN, which no bound keeps out, and infinity, which no clock reaches, are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; whatever is none, or is out of bounds, is refused."""
        # Before the bounds, which would be told of infinity alone.
        with suppress(ValueError, TypeError):
            if not math.isfinite(float(value)):
                self.fail(f"{value!r} is not a finite number", param, ctx)
        number: float = super().convert(value, param, ctx)
        return number


POSITIVE = Amount(min=0, min_open=True)
# A bound or a deadline of one query.
MILLISECONDS = Amount(min=0, min_open=True, max=LONGEST_MS)
SECONDS = Amount(min=0, min_open=True, max=LONGEST_SECONDS)
SECONDS_OR_ZERO = Amount(min=0, max=LONGEST_SECONDS)


class Written(ParamType):
    """A list that is written with commas on the command line, and as a list in a file as `annotation` has it."""

    annotation: Any

    def written(self, value: Sequence[Any]) -> str:
        """The list as the command line takes it."""
        return ",".join(map(str, value))


class Shape(Written):
    """An input without the batch: 3,224,224 or [3, 224, 224]; with a name and a dtype, ids=int64:128; mask=none.

    `scalar` is one number per row: the forward gets a tensor of shape [batch].
    """

    name = "shape"
    annotation = tuple[Annotated[int, Gt(0)], ...] | str

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> InputRequest:
        """What was asked; sizes that are no positive integers are refused."""
        if isinstance(value, InputRequest):
            return value
        if not isinstance(value, str):
            return InputRequest(shape=tuple(value))
        found = _INPUT.fullmatch(value)
        if found is None:
            self.fail(
                f"{value!r} is not a shape; expected positive integers, such as 3,224,224, with NAME= and DTYPE: "
                "before them where needed, scalar for one number per row, or NAME=none",
                param,
                ctx,
            )
        written = found["sizes"]
        sizes = () if written == "scalar" else tuple(map(int, written.split(","))) if written else None
        return InputRequest(shape=sizes, name=found["name"] or found["absent"], dtype=found["dtype"])

    def written(self, value: Any) -> str:
        """The input as the command line takes it."""
        return value if isinstance(value, str) else super().written(value)


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
        if not numbers or not all(map(math.isfinite, numbers)):
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


class Parsed(Written):
    """One value that a file spells as the command line does."""

    annotation: Any = str
    made: type
    spelling: re.Pattern[str]
    refusal: str

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What was asked; text that is spelled otherwise is refused."""
        if isinstance(value, self.made):
            return value
        found = self.spelling.fullmatch(value)
        if found is None:
            self.fail(f"{value!r} {self.refusal}", param, ctx)
        return self.parse(found)

    def parse(self, found: re.Match[str]) -> Any:
        """What the text means."""
        raise NotImplementedError

    def written(self, value: Any) -> str:
        """The text as it was."""
        return str(value)


class Dynamic(Parsed):
    """Axes of an input whose size requests choose: image:2,3 or ids:1=1..512, an axis as 1@name for a dim's name."""

    name = "dynamic"
    made = DynamicRequest
    spelling = _DYNAMIC
    refusal = "names no axes; expected NAME:AXES[=MIN..MAX], such as image:2,3=128..512 (the batch is axis 0)"

    def parse(self, found: re.Match[str]) -> DynamicRequest:
        """The input, its axes, and their bounds where there are some."""
        named = (axis.partition("@") for axis in found["axes"].split(","))
        axes = tuple((int(axis), name or None) for axis, _, name in named)
        bounds = (int(found["low"]), int(found["high"])) if found["low"] else None
        return DynamicRequest(input=found["name"], axes=axes, bounds=bounds)


class Values(Parsed):
    """The values that an integer input takes: ids=0..30521, or attention_mask=mask."""

    name = "values"
    made = ValuesRequest
    spelling = _VALUES
    refusal = "is no range; expected NAME=LOW..HIGH, such as ids=0..30521, or NAME=mask"

    def parse(self, found: re.Match[str]) -> ValuesRequest:
        """The input and its range, None for a mask."""
        span = None if found["low"] is None else (int(found["low"]), int(found["high"]))
        return ValuesRequest(input=found["name"], range=span)


class Location(Written):
    """A folder or a URL such as s3://bucket/models; in a file, a relative folder begins where the file lies."""

    name = "location"
    annotation = Place

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is."""
        return str(value)

    def written(self, value: Any) -> str:
        """The text as it was."""
        return str(value)
