"""The base of all records: what they look like as JSON, and what is said of a file that is none."""

import json
import math
from pathlib import Path
from typing import NoReturn

import pytest

from deploy.errors import UsageError
from deploy.evidence import WorstElement
from deploy.records import read_object

LOST = WorstElement(case="normal", sample=0, index=(3,), reference=math.inf, found=math.nan)


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")


def test_what_json_lacks_is_a_string_in_files_and_on_stdout() -> None:
    printed = json.dumps(LOST.plain())
    assert json.loads(printed, parse_constant=refuse) == json.loads(LOST.to_json(), parse_constant=refuse)
    assert WorstElement.model_validate_json(printed).reference == math.inf


@pytest.mark.parametrize("text", ["{", "[1]", "null", "\x00"])
def test_a_file_that_holds_no_object_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"config\.json") as refused:
        read_object(path)
    assert refused.value.expected == "a JSON object"
    assert refused.value.fix


def test_an_object_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.json"):
        read_object(tmp_path / "config.json")
