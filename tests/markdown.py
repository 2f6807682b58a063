"""What the tests of the documentation read from Markdown: fenced blocks, tables, links.

Owns the little of Markdown that this project's pages use. Called by test_docs, test_structure and test_examples.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
_FOLDERS = ("docs", "docker", "k8s", "model_repository", "examples", "examples/pipelines", "benchmarks")
PAGES = sorted((*ROOT.glob("*.md"), *(page for name in _FOLDERS for page in (ROOT / name).glob("*.md"))))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def fenced(page: Path, language: str) -> list[str]:
    """The texts of the fenced blocks of one language, in order."""
    return [text for found, text in _FENCE.findall(page.read_text()) if found == language]


def prose(page: Path) -> str:
    """The text of a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def commands(page: Path) -> list[str]:
    """The lines of the `sh` blocks, those continued by a backslash joined."""
    lines = "\n".join(fenced(page, "sh")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


def table(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its two head lines."""
    section = page.read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def coded(cell: str) -> list[str]:
    """The words in backquotes, of a table's cell or of prose."""
    return re.findall(r"`([^`\n]+)`", cell)


def relative_links(page: Path) -> list[str]:
    """The targets of links to other files of the project, without their anchors."""
    targets = [target.split("#")[0] for target in _LINK.findall(page.read_text())]
    return [target for target in targets if target and "://" not in target]


def linked_headings(page: Path) -> list[tuple[str, str]]:
    """The links to a heading, each as its page, empty for the same, and its anchor."""
    parts = [target.partition("#") for target in _LINK.findall(page.read_text()) if "://" not in target]
    return [(place, anchor) for place, mark, anchor in parts if mark]


def anchors(page: Path) -> set[str]:
    """What GitHub calls each heading of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    words = (_LINK.sub("]", heading).strip().lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", one).replace(" ", "-") for one in words}
