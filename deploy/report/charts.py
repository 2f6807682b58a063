"""Plots as inline SVG that follow the page's colours, in light, in dark and on paper.

Owns size, type, colours and the cleaning of what matplotlib writes; what is drawn is in `evidence_charts` and
`slo_charts`. Imports matplotlib on use, without pyplot: that half of its import is never needed here.

Matplotlib knows fixed colours only, a page has variables. So each role has a colour of its own that nothing else
uses, and becomes the variable of that name in the text of the SVG. Letters stay text: smaller, searchable, legible in
the page's own font. Equal values give equal bytes.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from deploy.files import sha256_bytes
from deploy.report.words import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Inches at 72 points: as wide as a phone's page, so that type on a phone has the size it is set in.
_WIDTH = 4.7
_TEXT = 12.0
_LONGEST_LABEL = 42
# Inches for the ticks and the name of the x axis.
_BELOW = 0.55
# The ticks in each decade of an axis that spans less than this factor.
_TICKS = ((8.0, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)), (300.0, (1.0, 2.0, 5.0)))

_ROLES = ("ink", "muted", "grid", "paper", "one", "two", "three", "four", "good", "warn", "bad")
_COLOURS = {role: f"#0102{number:02x}" for number, role in enumerate(_ROLES, start=0x10)}

_HEAD = re.compile(r"\A.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_STYLE = re.compile(r"\s*<style.*?</style>", re.DOTALL)
_COMMENT = re.compile(r"\s*<!--.*?-->", re.DOTALL)
_SIZE = re.compile(r' (?:width|height)="[^"]*pt"')
_FAMILY = re.compile(r"; font-family: [^;\"]*|font-family: [^;\"]*; ")
_ID = re.compile(r' id="([^"]*)"')
_BLANKS = re.compile(r"\s*\n\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A finished plot: `svg` is markup, `label` says what it shows to those who do not see it, `caption` to all."""

    svg: str
    label: str
    caption: str


def colour(role: str) -> str:
    """The stand-in for one of the page's colours."""
    return _COLOURS[role]


def label_of(text: str) -> str:
    """A name from elsewhere, short enough for a plot."""
    return printable(text, _LONGEST_LABEL)


def draw(paint: "Callable[[Axes], None]", *, height: float, label: str, caption: str, top: float = 0.1) -> Chart:
    """The plot that `paint` draws on one pair of axes, `height` inches high, with `top` inches left above them."""
    from matplotlib.figure import Figure

    with _settings(salt=label):
        figure = Figure(figsize=(_WIDTH, height))
        axes = figure.add_axes((0.1, _BELOW / height, 0.87, 1 - (_BELOW + top) / height))
        paint(axes)
        stream = StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Chart(svg=_clean(stream.getvalue(), label), label=printable(label), caption=caption)


def log_axis(axes: "Axes", which: str, low: float, high: float) -> None:
    """Make the x or the y axis logarithmic from `low` to `high`, with ticks that are written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    ticks = next((ticks for factor, ticks in _TICKS if high / low < factor), (1.0,))
    axis.set_major_locator(LogLocator(subs=ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if 1e-4 <= value < 1e6 else f"{value:.0e}"))
    axis.set_minor_formatter(NullFormatter())


def span(values: list[float], *, margin: float = 1.25) -> tuple[float, float]:
    """Limits of a logarithmic axis that hold all positive finite values, at least a factor of four apart."""
    good = [value for value in values if 0 < value < float("inf")] or [1.0]
    low, high = min(good) / margin, max(good) * margin
    while high / low < 4:
        low, high = low / 1.1, high * 1.1
    return low, high


@contextmanager
def _settings(salt: str) -> Iterator[None]:
    import matplotlib

    muted = colour("muted")
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        # What the names of clip paths and markers are made of: equal plots get equal names, others do not clash.
        "svg.hashsalt": salt,
        "font.family": "DejaVu Sans",
        "font.size": _TEXT,
        # A model's own names may hold dollar signs.
        "text.parse_math": False,
        "text.color": colour("ink"),
        "axes.labelcolor": muted,
        "axes.edgecolor": colour("grid"),
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": colour("grid"),
        "grid.linewidth": 0.6,
        "xtick.color": colour("grid"),
        "ytick.color": colour("grid"),
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "xtick.labelsize": _TEXT - 1,
        "ytick.labelsize": _TEXT - 1,
        "axes.labelsize": _TEXT - 1,
        **dict.fromkeys(("xtick.major.size", "ytick.major.size", "xtick.minor.size", "ytick.minor.size"), 0),
        "legend.frameon": False,
        "legend.fontsize": _TEXT - 1,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # A name in a script that DejaVu lacks is written as text all the same, and the reader's own font shows it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def _clean(svg: str, label: str) -> str:
    """The bare element: no prologue, no fixed size, colours as variables, and no name that nothing refers to."""
    for pattern in (_HEAD, _METADATA, _STYLE, _COMMENT, _SIZE):
        svg = pattern.sub("", svg, count=0 if pattern is not _HEAD else 1)
    svg = _FAMILY.sub("", svg)
    for role, value in _COLOURS.items():
        svg = svg.replace(value, f"var(--{role})")
    prefix = f"c{sha256_bytes(label.encode())[:6]}-"

    def keep(match: re.Match[str]) -> str:
        name = match[1]
        return f' id="{prefix}{name}"' if f"#{name}" in used else ""

    used = set(re.findall(r'(?:href="|url\()(#[^")]*)', svg))
    svg = _ID.sub(keep, svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", svg)
    return _BLANKS.sub("\n", svg).replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
