"""What docs/inputs.md says goes in is what the code knows, and each test it names is there."""

import ast
import re
from functools import cache
from typing import get_args, get_type_hints

import pytest

from deploy.checkpoint.model import Checkpoint
from deploy.checkpoint.pretrained import _ENDINGS
from deploy.checkpoint.sniff import Kind
from deploy.checkpoint.timm_entries import TIMM
from deploy.checkpoint.zoo import load_zoo
from deploy.convert.flex import DECOMPOSED, FUSED
from tests.markdown import ROOT, coded, table

PAGE = ROOT / "docs" / "inputs.md"
TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
REFUSALS = "Refused, and what would make it work"


def known() -> set[str]:
    """Every kind that the code tells from another, by the name that the page has for it."""
    hows = get_args(get_type_hints(Checkpoint)["how"])
    return {
        *(f"Kind.{kind.name}" for kind in Kind),
        *(f"zoo: {entry.kind}" for entry in load_zoo().values()),
        *(f"how: {how}" for how in hows),
        *(f"...{ending}" for ending in _ENDINGS),
        TIMM,
        FUSED,
        DECOMPOSED,
    }


def rows(*headings: str) -> list[list[str]]:
    return [row for heading in headings for row in table(PAGE, heading)]


def test_each_kind_that_the_code_knows_has_a_row_and_no_other_has() -> None:
    named = {word for row in rows("Containers", "Networks", "Ways of computing") for word in coded(row[3])}
    refused = {word for row in rows(REFUSALS) for word in coded(row[0]) if word.startswith("zoo: ")}
    own = {word for word in named if word.startswith(("Kind.", "zoo: ", "how: ", "...")) or word in known()}
    assert own | refused == known()
    assert own & refused == set()


@pytest.mark.parametrize("file", sorted({file for file, _ in TEST.findall(PAGE.read_text())}))
def test_each_test_that_the_page_names_is_there(file: str) -> None:
    wanted = {name for found, name in TEST.findall(PAGE.read_text()) if found == file}
    tree = ast.parse((ROOT / file).read_text())
    assert wanted - {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} == set()


def test_each_row_names_a_test() -> None:
    for row in rows("Containers", "Networks", "Ways of computing", REFUSALS):
        assert TEST.search(row[-1]), row[0]


@cache
def sayings() -> str:
    """All strings of the package, those of one expression joined."""
    texts = []
    for path in sorted((ROOT / "deploy").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(str(part.value) for part in node.values if isinstance(part, ast.Constant)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_each_refusal_is_said_as_the_page_has_it() -> None:
    for row in rows(REFUSALS):
        assert coded(row[1]), row
        assert [words for words in coded(row[1]) if words not in sayings()] == [], row[0]
