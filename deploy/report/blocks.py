"""What a page is made of: sections of tables, figures, facts and notes, as plain text without markup.

Owns the values between the findings and the template, which alone knows HTML and escapes whatever it gets. Made by
`sections` and `slo_sections`, laid out by `html`.
"""

from dataclasses import dataclass
from typing import ClassVar

from deploy.report.charts import Chart


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A verdict in a table's cell."""

    word: str


Cell = str | Word


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A real table. The first column heads its row; `numbers` are aligned right, `code` is set as code.

    `texts` hold sentences, which get the width to be read.
    """

    kind: ClassVar[str] = "table"
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numbers: tuple[int, ...] = ()
    code: tuple[int, ...] = ()
    texts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Plots, side by side where there is room."""

    kind: ClassVar[str] = "figures"
    charts: tuple[Chart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Names with their values."""

    kind: ClassVar[str] = "facts"
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """Sentences, one below the other."""

    kind: ClassVar[str] = "notes"
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """What must not be overlooked."""

    kind: ClassVar[str] = "alert"
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A command line or another text that is kept as it is."""

    kind: ClassVar[str] = "code"
    name: str
    text: str


Block = Table | Figures | Facts | Notes | Alert | Code


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page with a heading; `word` is its verdict, empty where it has none."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]
    word: str = ""
