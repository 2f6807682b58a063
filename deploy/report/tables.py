"""How every table, title and verdict on a terminal looks.

Owns looks only. Called by `terminal` and `slo_terminal`. Imports rich on use.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_STYLES = {"PASS": "bold green", "UNDECIDED": "bold yellow"}


def title(text: str) -> "Text":
    """A heading."""
    from rich.text import Text

    return Text(text, style="bold")


def table_of(*names: str, numbers: Sequence[str] = ()) -> "Table":
    """A table without borders, narrow enough for 80 columns; `names` are aligned left, `numbers` right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold")
    for number in numbers:
        table.add_column(number, justify="right", overflow="fold")
    return table


def styled_verdict(word: str) -> "Text":
    """PASS in green, UNDECIDED in yellow, and every other word, FAIL and INVALID among them, in red."""
    from rich.text import Text

    return Text(word, style=_STYLES.get(word, "bold red"))
