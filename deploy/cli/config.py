"""A command's table of a deploy.toml: its options by their long names, so that nothing is declared twice.

Owns which commands have a table, which options are keys and of what type. A flag is a key where it has a `--no-` form;
other flags, and arguments, are decisions for one run. `[promote]` alone holds a policy and no options. Reading and
refusing is `deploy.settings`'s. Called by the option `--config` (`deploy.cli.options`), by `promote`, for the schema
and the pages that describe the file.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import click
from click.core import ParameterSource
from pydantic import Field, create_model

from deploy.cli.main import COMMANDS
from deploy.cli.types import ParamType, Written
from deploy.errors import UsageError
from deploy.records import Record
from deploy.release.policy_file import PromotionPolicy
from deploy.settings import LocalPath, check_names, get_table, parse_table, read_toml

# What a table holds that is no command's options.
RECORDS: Mapping[str, type[Record]] = {"promote": PromotionPolicy}
# In the order in which a release needs them.
TABLES = ("package", "slo", "diff", "tune", "sign", "verify", "promote", "publish", "docker", "k8s")


def read_defaults(path: Path, context: click.Context) -> dict[str, Any]:
    """What the table of the context's command says, by parameter. Every table of the file is checked on the way.

    Raises UsageError as `read_config` does, and if the file has no table for this command.
    """
    found = read_config(path)
    table = get_table(path, str(context.info_name), found)
    said = {key: getattr(table, key) for key in table.model_fields_set}
    options = table_options(context.command)
    return {str(options[key].name): _listed(options[key], value) for key, value in said.items()}


def read_config(path: Path) -> dict[str, Record]:
    """Every table of the file, so that no command accepts a file that another would refuse.

    Raises UsageError if the file cannot be read, has an unknown table, or a table with wrong keys, each of them named.
    """
    found = read_toml(path)
    check_names(path, found, tables=TABLES)
    for name in found.keys() - RECORDS.keys():
        _check_keys(path, name, found[name])
    return {name: parse_table(path, name, table_record(name), values) for name, values in found.items()}


def table_record(name: str) -> type[Record]:
    """The record that the table `name` is read into: a field per key, none of them required.

    Defaults and descriptions are those of the command's options; which keys a file has is in `model_fields_set`.
    """
    if name in RECORDS:
        return RECORDS[name]
    command = find_command(name)
    fields: dict[str, Any] = {
        key: (_annotation(option), Field(default=option_default(command, option), description=option.help))
        for key, option in table_options(command).items()
    }
    record: type[Record] = create_model(f"{name.capitalize()}Table", __base__=Record, **fields)
    return record


def table_options(command: click.Command) -> Mapping[str, click.Option]:
    """The options of a command that its table may hold, by key."""
    options = (option for option in command.params if isinstance(option, click.Option) and option.name != "config")
    return {_key(option): option for option in options if not option.is_flag or option.secondary_opts}


def find_command(name: str) -> click.Command:
    """The command `name`, imported now."""
    command = importlib.import_module(COMMANDS[name][0]).command
    assert isinstance(command, click.Command)
    return command


def option_default(command: click.Command, option: click.Option) -> Any:
    """What an option is where nobody says it, None where that is decided later."""
    value = option.get_default(click.Context(command), call=False)
    # Click has markers of its own for "none was given".
    return value if isinstance(value, str | int | float | Path) else None


def own_command(context: click.Context, arguments: Sequence[str]) -> tuple[str, ...]:
    """The command as it was typed, with what a file said written out as options, so that it says all by itself.

    The folders of absolute paths are left out: where they lay says nothing to others.
    """
    words = list(_without_config(arguments))
    for option in table_options(context.command).values():
        if context.get_parameter_source(str(option.name)) is ParameterSource.DEFAULT_MAP:
            words += _as_words(option, (context.default_map or {})[str(option.name)])
    return ("deployctl", *(Path(word).name if Path(word).is_absolute() else word for word in words))


def _check_keys(path: Path, name: str, values: Any) -> None:
    """Raises UsageError for an option of the command that is no key, since it is a decision for one run."""
    command, said = find_command(name), set(values) if isinstance(values, dict) else set()
    for option in command.params:
        if isinstance(option, click.Option) and (key := _key(option)) in said - table_options(command).keys():
            raise UsageError(
                f"{path}: [{name}] {key} is a decision for one run, so no file holds it",
                fix=f"take it out, and give {max(option.opts, key=len)} on the command line where it is meant",
            )


def _key(option: click.Option) -> str:
    return max(option.opts, key=len).lstrip("-").replace("-", "_")


def _annotation(option: click.Option) -> Any:
    """The type of a key; a key whose option may be repeated takes one value or a list of them."""
    one: Any = bool if option.is_flag else _type(option.type)
    return one | tuple[one, ...] if option.multiple else one


def _type(kind: ParamType) -> Any:
    if isinstance(kind, Written):
        return kind.annotation
    if isinstance(kind, click.Choice):
        return Literal[tuple(kind.choices)]
    if isinstance(kind, click.FloatRange | click.IntRange):
        lower, upper = ("gt" if kind.min_open else "ge"), ("lt" if kind.max_open else "le")
        limits: dict[str, Any] = {lower: kind.min, upper: kind.max}
        if isinstance(kind, click.FloatRange):
            return Annotated[float, Field(**limits, allow_inf_nan=False)]
        return Annotated[int, Field(**limits)]
    if isinstance(kind, click.Path):
        return LocalPath
    return {"text": str, "integer": int, "float": float}[kind.name]


def _without_config(arguments: Sequence[str]) -> Iterator[str]:
    words = iter(arguments)
    for word in words:
        if word == "--config":
            next(words, None)
        elif not word.startswith("--config="):
            yield word


def _as_words(option: click.Option, value: Any) -> list[str]:
    name = max(option.opts, key=len)
    if option.is_flag:
        return [name] if value else [max(option.secondary_opts, key=len)]
    write = option.type.written if isinstance(option.type, Written) else str
    return [word for one in (value if option.multiple else (value,)) for word in (name, write(one))]


def _listed(option: click.Option, value: Any) -> Any:
    """The value of a key as click takes it: a list of values where the option may be repeated."""
    if not option.multiple:
        return value
    # [3, 64, 64] is one shape, [[3, 64, 64], [5]] are two.
    one = not isinstance(value, tuple) or (isinstance(option.type, Written) and value and isinstance(value[0], int))
    return (value,) if one else value
