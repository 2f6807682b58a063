"""`deployctl inspect CKPT`: what a checkpoint holds, which architecture it fits, and what stays unknown.

Owns the printed form. Reading is deploy.checkpoint's work, done in this process.
Called by the command line.
"""

import json
from typing import TYPE_CHECKING

import click

from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.checkpoint.weights import ADDED
from deploy.cli.options import checkpoint_options

if TYPE_CHECKING:
    from rich.table import Table


@click.command("inspect")
@checkpoint_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(*, request: CheckpointRequest, as_json: bool) -> None:
    """Say what a checkpoint holds and which architecture it fits; nothing is converted or written."""
    from deploy.checkpoint.load import read_checkpoint

    checkpoint = read_checkpoint(request)
    if as_json:
        click.echo(json.dumps({**checkpoint.plain(), "standing": _standing(checkpoint)}))
        return
    _print(checkpoint)


def _standing(checkpoint: Checkpoint) -> str:
    # Only expected outputs could confirm it, and `inspect` runs nothing.
    return f"{checkpoint.origin}, behaviour unconfirmed"


def _print(checkpoint: Checkpoint) -> None:
    from rich.console import Console

    console = Console(highlight=False, emoji=False, markup=False)
    console.print(_table(checkpoint))
    console.print(_standing(checkpoint))
    for note in checkpoint.notes:
        console.print(f"note: {note}")


def _table(checkpoint: Checkpoint) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _rows(checkpoint):
        table.add_row(label, Text(value))
    return table


def _rows(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    from deploy.report.words import preprocessing_words

    options = ", ".join(f"{name}={value}" for name, value in checkpoint.options.items())
    return [
        ("file", f"{checkpoint.path} ({checkpoint.format}, {checkpoint.size / 1e6:.1f} MB)"),
        ("sha256", checkpoint.digest),
        ("name", checkpoint.name),
        ("architecture", checkpoint.architecture + (f" ({options})" if options else "")),
        ("weights", _weights(checkpoint)),
        ("parameters", f"{checkpoint.parameters:,} in {checkpoint.dtype}"),
        *((f"input {spec.name}", f"{spec.dtype} {' x '.join(map(str, spec.shape))}") for spec in checkpoint.inputs),
        *((f"dim {dim.name}", f"{dim.minimum} to {dim.maximum}") for dim in checkpoint.dims),
        ("classes", _classes(checkpoint)),
        ("preprocessing", preprocessing_words(checkpoint.preprocessing) or "unknown"),
    ]


def _weights(checkpoint: Checkpoint) -> str:
    under = f"under {checkpoint.found_under!r}" if checkpoint.found_under else "at the top of the file"
    choice = f", {checkpoint.weights}" if checkpoint.weights else ""
    steps = checkpoint.removed_prefixes
    removed = ", ".join(repr(step) for step in steps if step and not step.startswith(ADDED))
    added = ", ".join(repr(step.removeprefix(ADDED)) for step in steps if step.startswith(ADDED))
    under += choice + (f", prefixes removed: {removed}" if removed else "")
    return under + (f", prefix added: {added}" if added else "")


def _classes(checkpoint: Checkpoint) -> str:
    if checkpoint.classes is None:
        return f"{checkpoint.num_classes or 'unknown number'}, names unknown"
    shown = ", ".join(checkpoint.classes[:8]) + (", ..." if len(checkpoint.classes) > 8 else "")
    return f"{len(checkpoint.classes)}: {shown}"
