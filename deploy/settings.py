"""One table of a deploy.toml, read into a Record: what a team keeps in a file instead of on each command line.

Owns the reading and its refusals. Which tables there are and what each may hold belongs to the rooms that use them;
`deploy.cli.config` lists them. Called by it, and by whoever reads one table of a file.
"""

import json
import tomllib
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails

from deploy.errors import UsageError
from deploy.records import Record


def _beside(value: Path, info: ValidationInfo) -> Path:
    return info.context / value if isinstance(info.context, Path) else value


def _beside_or_url(value: str, info: ValidationInfo) -> str:
    return value if "://" in value else str(_beside(Path(value), info))


# What a table's keys are typed as, so that a relative path begins at the file's folder; elsewhere it stays as it is.
LocalPath = Annotated[Path, AfterValidator(_beside)]
Place = Annotated[str, AfterValidator(_beside_or_url)]  # a folder or a URL such as s3://bucket/models
# A bound or a deadline of one query: an hour at most, which alerts and histograms can still express.
LONGEST_MS = 3_600_000.0
# A step, a wait or a load: a week at most, which every timer here can count.
LONGEST_SECONDS = 604_800.0
# A share of queries: of fewer than one in a billion nothing is ever shown, and 1 less that share is to be below 1.
LEAST_SHARE = 1e-9
Milliseconds = Annotated[float, Field(gt=0, le=LONGEST_MS, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=LONGEST_SECONDS, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, Field(ge=0, le=LONGEST_SECONDS, allow_inf_nan=False)]

Kind = TypeVar("Kind", bound=Record)


def read_table(path: Path, name: str, kind: type[Kind], *, tables: Collection[str] | None = None) -> Kind:
    """The table `[name]` of the TOML file at `path` as a `kind`, its relative paths taken from the file's folder.

    Raises UsageError if there is no such file or table, if it is not TOML, or has a key that `kind` does not know (the
    message names the nearest one) or cannot take; where `tables` are given, if it has a table that is not among them.
    """
    found = read_toml(path)
    if tables is not None:
        check_names(path, found, tables=tables)
    return parse_table(path, name, kind, get_table(path, name, found))


def get_table(path: Path, name: str, found: Mapping[str, Any]) -> Any:
    """What the file has under `name`. Raises UsageError, which says what is there, if it has nothing."""
    if name not in found:
        there = ", ".join(f"[{table}]" for table in found) or "nothing"
        raise UsageError(f"{path} has no table [{name}]; it holds {there}", expected=f"a table [{name}]")
    return found[name]


def read_toml(path: Path) -> dict[str, Any]:
    """What the file holds. Raises UsageError if it is absent, cannot be read, or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}", expected="a deploy.toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path} is not TOML: {error}", expected="a deploy.toml") from error


def check_names(path: Path, found: dict[str, Any], *, tables: Collection[str]) -> None:
    """Raises UsageError if something at the top of the file is no table, or a table that nothing reads."""
    for name, value in found.items():
        if name not in tables:
            what = f"table [{name}] is" if isinstance(value, dict) else f"key {name}, outside every table, is"
            raise UsageError(
                f"{path}: the {what} not known{_nearest(name, tables, '[{}]')}",
                expected=f"the tables {', '.join(f'[{table}]' for table in tables)}",
            )


def parse_table(path: Path, name: str, kind: type[Kind], found: Any) -> Kind:
    """What stands in the table `[name]` as a `kind`. Raises UsageError that names every key that is not right."""
    if not isinstance(found, dict):
        raise UsageError(f"{path}: {name} is a single value", expected=f"a table [{name}] with keys below it")
    try:
        # As JSON, since only there a list may become a tuple and a text a path while a text never becomes a number.
        return kind.model_validate_json(json.dumps(found, default=str), strict=True, context=path.parent)
    except ValidationError as error:
        wrong = error.errors()
        # Once each: a value that no branch of a union takes comes once per branch.
        lines = dict.fromkeys(f"{path}: [{name}] {_explained(one, kind)}" for one in wrong)
        keys = ", ".join(kind.model_fields)
        unknown = any(one["type"] == "extra_forbidden" for one in wrong)
        raise UsageError("\n".join(lines), expected=f"in [{name}], of the keys {keys}" if unknown else "") from error


def _explained(error: ErrorDetails, kind: type[Record]) -> str:
    # What holds a bracket is the branch of a union, not a place in the file.
    places = [str(part) for part in error["loc"] if "[" not in str(part)]
    where = ".".join(places) or "the table"
    if error["type"] == "extra_forbidden":
        return f"{where}: there is no such key{_nearest(places[-1], _keys(kind, places[:-1]), '{}')}"
    got, said = error["input"], error["msg"].removeprefix("Value error, ")
    return f"{where}: {said}" if isinstance(got, dict) else f"{where} is {json.dumps(got, default=str)}: {said}"


def _keys(kind: type[Record], outer: list[str]) -> tuple[str, ...]:
    """The keys of the record that lies below `outer`; none where there is no such record."""
    for part in outer:
        field = kind.model_fields.get(part)
        inner = next(_records(field.annotation), None) if field else kind
        if inner is None:
            return ()
        kind = inner
    return tuple(kind.model_fields)


def _records(annotation: Any) -> Iterator[type[Record]]:
    if isinstance(annotation, type) and issubclass(annotation, Record):
        yield annotation
    for inner in get_args(annotation):
        yield from _records(inner)


def _nearest(name: str, names: Collection[str], form: str) -> str:
    found = get_close_matches(name.replace("-", "_").lower(), names, n=1, cutoff=0.5)
    return f"; did you mean {form.format(found[0])}?" if found else ""
