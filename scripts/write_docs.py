"""Writes what the documentation takes from the code: the command reference, the keys of a deploy.toml, their schema.

`python scripts/write_docs.py` renews docs/commands.md, docs/configuration.md and docs/deploy.schema.json; a test
compares them with the code. The words are those of the commands' own help, so they are written once.
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import create_model

from deploy.cli.config import RECORDS, TABLES, find_command, option_default, table_options, table_record
from deploy.cli.examples import EXAMPLES
from deploy.cli.main import COMMANDS
from deploy.records import Record

DOCS = Path(__file__).parent.parent / "docs"
_SPOKEN_DEFAULT = re.compile(r"\s*\[default: (.*)\]$")

_COMMANDS_HEAD = """# Commands

Written by `scripts/write_docs.py` from the code; the same words as `deployctl COMMAND --help`.

Results go to stdout, talk and progress to stderr; `--json` prints one JSON object instead. Exit codes: 0 done and
passed, 1 the verdict is no or undecided, 2 wrong use or bad input, 3 something is missing on this machine, 4 it could
not be finished, 130 interrupted. `--debug`, in any place, shows the traceback of a failure. `--config` is explained in
[configuration.md](configuration.md).
"""

_CONFIGURATION_HEAD = """# deploy.toml

Written by `scripts/write_docs.py` from the code. What a team would type on each command line, in one file:

```toml
{example}```

- Each command that takes `--config FILE` has a table of its name; a key is an option's long name, with `_` for `-`.
- An option on the command line outdoes the file. A flag that is a key has a `--no-` form for that.
- Relative paths begin at the file's folder, wherever the command runs.
- The whole file is checked by each command before it does anything: an unknown table or key, or a value of the wrong
  type, ends it with exit code 2 and names the nearest right one.
- Arguments, and flags without a `--no-` form (`--promote`, `--trust-pickle`, `--unsafe-accept-parity-failure`), are
  decisions for one run; no file holds them.
- What a file said stands written out as options in the manifest's record of the command.

[deploy.schema.json](deploy.schema.json) is its JSON Schema. Editors that know taplo check and complete a file that
begins with `#:schema`, a space, and the path or URL of the schema.
"""


def commands_page() -> str:
    """docs/commands.md."""
    sections = [text for name in COMMANDS for text in _command_sections(name, find_command(name))]
    return "\n".join((_COMMANDS_HEAD, *sections))


def configuration_page() -> str:
    """docs/configuration.md."""
    example = (DOCS.parent / "examples" / "pipelines" / "deploy.toml").read_text()
    sections = [_table_section(name) for name in TABLES]
    return "\n".join((_CONFIGURATION_HEAD.format(example=example), *sections))


def schema() -> str:
    """docs/deploy.schema.json: the JSON Schema of a whole deploy.toml."""
    tables: dict[str, Any] = {name: (table_record(name), None) for name in TABLES}
    found = create_model("DeployToml", __base__=Record, **tables).model_json_schema()
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_cleaned(found), "title": "deploy.toml"}
    return json.dumps(whole, indent=2) + "\n"


PAGES = {"commands.md": commands_page, "configuration.md": configuration_page, "deploy.schema.json": schema}


def _command_sections(name: str, command: click.Command) -> Iterator[str]:
    if isinstance(command, click.Group):
        for inner, leaf in command.commands.items():
            yield from _command_sections(f"{name} {inner}", leaf)
        return
    with click.Context(command, info_name=f"deployctl {name}") as context:
        usage = " ".join((context.command_path, *command.collect_usage_pieces(context)))
    rows = [_option_row(command, option) for option in command.params if isinstance(option, click.Option)]
    yield _lines(
        f"## deployctl {name}",
        "",
        f"`{usage}`",
        "",
        inspect.cleandoc(command.help or ""),
        "",
        "| option | meaning | default |",
        "| --- | --- | --- |",
        *rows,
        "",
        "```sh",
        *EXAMPLES.get(name, ()),
        "```",
    )


def _lines(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def _option_row(command: click.Command, option: click.Option) -> str:
    names = " / ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    meaning, default = _meaning(command, option, in_file=False)
    return f"| {names}{'' if option.is_flag else ' ' + _value(option)} | {meaning} | {default} |"


def _value(option: click.Option) -> str:
    with click.Context(click.Command("none")) as context:
        text = option.make_metavar(context)
    return _cell(text if option.metavar or isinstance(option.type, click.Choice) else text.split(" RANGE")[0])


def _meaning(command: click.Command, option: click.Option, *, in_file: bool) -> tuple[str, str]:
    """The option's help, and its default, which the help may say in words; a flag's as a file or a command has it."""
    text = option.help or ""
    spoken = _SPOKEN_DEFAULT.search(text)
    default = spoken[1] if spoken else option_default(command, option)
    shown = "" if default is None or default is False else str(default)
    if option.is_flag and option.secondary_opts:
        shown = str(bool(default)).lower() if in_file else f"`{(option.opts if default else option.secondary_opts)[0]}`"
    return _cell(_SPOKEN_DEFAULT.sub("", text)), _cell(shown)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table_section(name: str) -> str:
    shapes = table_record(name).model_json_schema()["properties"]
    said = dict(_said(name, shapes))
    rows = [
        f"| `{key}` | {_cell(_toml_type(shape))} | {said[key][1]} | {said[key][0]} |" for key, shape in shapes.items()
    ]
    return _lines(
        f"## [{name}]",
        "",
        f"For [`deployctl {name}`](commands.md#deployctl-{name})."
        + (" Given as `--environment`; each key demands something of a version." if name in RECORDS else ""),
        "",
        "| key | type | default | meaning |",
        "| --- | --- | --- | --- |",
        *rows,
    )


def _said(name: str, shapes: dict[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Each key with its meaning and its default."""
    if name in RECORDS:
        for key, shape in shapes.items():
            default = shape.get("default")
            yield key, (shape["description"], "" if default in (None, [], "") else json.dumps(default).strip('"'))
        return
    command = find_command(name)
    for key, option in table_options(command).items():
        yield key, _meaning(command, option, in_file=True)


_NULL = {"type": "null"}
_WORDS = {"number": "number", "integer": "integer", "boolean": "true or false", "string": "text"}
_LIMITS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def _toml_type(shape: dict[str, Any]) -> str:
    if "anyOf" in shape:
        return ", or ".join(_toml_type(one) for one in shape["anyOf"] if one != _NULL)
    if "enum" in shape:
        return " or ".join(f"`{value}`" for value in shape["enum"])
    if shape.get("format") == "path":
        return "path"
    if shape["type"] == "array":
        return f"list of {_toml_type(shape['items'])}"
    limits = [f"{sign} {shape[key]:.10g}" for key, sign in _LIMITS.items() if key in shape]
    return " ".join((_WORDS[shape["type"]], " and ".join(limits))).strip()


def _cleaned(shape: Any) -> Any:
    """A schema without what pydantic adds for itself: titles that repeat the key, defaults that say nothing."""
    if isinstance(shape, list):
        return [_cleaned(one) for one in shape]
    if not isinstance(shape, dict):
        return shape
    if _NULL in shape.get("anyOf", ()):
        # TOML knows no null: a key is there or not.
        others = [one for one in shape["anyOf"] if one != _NULL]
        rest = {key: value for key, value in shape.items() if key != "anyOf"}
        shape = rest | (others[0] if len(others) == 1 else {"anyOf": others})
    kept = {key: _cleaned(value) for key, value in shape.items() if not (key == "default" and value is None)}
    return {key: value for key, value in kept.items() if not (key == "title" and isinstance(value, str))}


def main() -> int:
    """Write the pages that changed, and name them."""
    for name, make in PAGES.items():
        text = make()
        if not (DOCS / name).exists() or (DOCS / name).read_text() != text:
            (DOCS / name).write_text(text)
            print(f"written: docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
