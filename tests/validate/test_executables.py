"""The clock round a call: what was begun on a device is waited for before it and after it."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.validate.executables import _Timed
from deploy.validate.machine import installed_versions


class Launched(_Timed):
    """A device that does its work later: every call and every wait leaves its mark."""

    def __init__(self) -> None:
        self.marks: list[str] = []

    def _bind(self, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        return lambda: self.marks.append("call")

    def _finish(self) -> Callable[[], object]:
        return lambda: self.marks.append("wait")


def test_the_device_is_waited_for_before_the_first_call_and_after_each() -> None:
    model = Launched()
    assert len(model.time_calls([], 3)) == 3
    assert model.marks == ["wait", "call", "wait", "call", "wait", "call", "wait"]


def test_the_second_answer_is_that_of_a_second_call() -> None:
    class Counting(Launched):
        def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
            self.marks.append("run")
            return [inputs[0] + len(self.marks)]

    first, again = Counting().run_twice([np.zeros(1)])
    assert (first[0].item(), again[0].item()) == (1.0, 2.0)


def test_versions_are_those_that_the_modules_say_of_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`onnxruntime-gpu` brings another's module, and PyPI's torch 2.11.0 calls itself 2.11.0+cu130."""
    installed = installed_versions(["torch", "onnxruntime", "no-such-distribution"])
    assert installed.keys() == {"torch", "onnxruntime"}
    assert re.fullmatch(r"1\.\d+\.\d+", installed["onnxruntime"])
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text('"""Ours."""\n\n__version__ = "9.8.7"\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    assert installed_versions(["onnxruntime"]) == {"onnxruntime": "9.8.7"}
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("from torch.version import __version__\n")
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.11.0+cu130'\n")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert installed_versions(["torch"]) == {"torch": "2.11.0+cu130"}
