"""docs/architecture.md is true: its rooms exist, imports point up, and light commands stay light."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli.main import COMMANDS
from tests.imports import downward, find_cycle, import_graph
from tests.markdown import ROOT, coded, prose, table

ARCHITECTURE = ROOT / "docs" / "architecture.md"
HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "tritonclient", "sklearn")

# Runs a command line in this process and says on the last line of stderr which heavy modules that imported.
PROBE = """
import json, sys
from deploy.cli.main import cli
try:
    cli.main(sys.argv[2:], prog_name="deployctl")
except SystemExit as end:
    code = end.code
loaded = [name for name in json.loads(sys.argv[1]) if name in sys.modules]
print(json.dumps({"code": code, "loaded": loaded}), file=sys.stderr)
"""

# The help of several commands in one process; what of the heavy modules that imported is on the last line of stderr.
HELP_PROBE = """
import json, sys
from deploy.cli.main import cli
for name in sys.argv[2:]:
    cli.main([name, "--help"], prog_name="deployctl", standalone_mode=False)
print(json.dumps([name for name in json.loads(sys.argv[1]) if name in sys.modules]), file=sys.stderr)
"""


def rooms() -> dict[str, int]:
    """The rooms of the table in docs/architecture.md, each with the number of its row."""
    rows = table(ARCHITECTURE, "The rooms")
    return {room: number for number, row in enumerate(rows) for room in coded(row[0])}


def test_the_rooms_in_the_document_are_those_of_the_code() -> None:
    found = {path.stem for path in (ROOT / "deploy").glob("*.py")} - {"__init__"}
    found |= {path.parent.name for path in (ROOT / "deploy").glob("*/__init__.py")}
    assert set(rooms()) == found


def test_imports_point_to_rooms_above_their_own() -> None:
    assert downward(import_graph(ROOT / "deploy"), rooms()) == []


def test_no_import_cycle_even_inside_functions() -> None:
    assert find_cycle(import_graph(ROOT / "deploy")) == []


def test_the_walk_sees_downward_imports_and_cycles(tmp_path: Path) -> None:
    package = tmp_path / "pack"
    for name, text in {
        "__init__.py": "",
        "floor.py": "def late():\n    from pack.roof import tile\n",
        "roof/__init__.py": "",
        "roof/tile.py": "from ..floor import late\n",
        "wall.py": "import pack.floor\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    graph = import_graph(package)
    assert downward(graph, {"floor": 0, "wall": 1, "roof": 2}) == ["pack.floor -> pack.roof.tile"]
    assert find_cycle(graph) == ["pack.floor", "pack.roof.tile"]
    assert graph["pack.wall"] == {"pack.floor"}


def test_files_that_the_document_names_exist() -> None:
    named = {word.rstrip("/") for word in coded(prose(ARCHITECTURE)) if "/" in word and "<" not in word}
    assert "deploy/package.py" in named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *(
            [name, "--help"]
            for name in ("serve", "promote", "rollback", "sign", "publish", "pull", "package", "targets", "doctor")
        ),
    ],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-c", PROBE, json.dumps(HEAVY), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stderr.splitlines()[-1]) == {"code": 0, "loaded": []}
    assert "Usage: deployctl" in result.stdout


def test_no_command_imports_what_computes_to_say_what_it_does() -> None:
    """All of them, in one process: numpy and Pillow are kept out too."""
    command = [sys.executable, "-c", HELP_PROBE, json.dumps((*HEAVY, "numpy", "PIL")), *COMMANDS]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert json.loads(result.stderr.splitlines()[-1]) == []
    assert all(f"Usage: deployctl {name}" in result.stdout for name in COMMANDS)


def test_the_probe_sees_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    probe = PROBE.replace("import json, sys", f"import json, sys; sys.path.insert(0, {str(tmp_path)!r}); import torch")
    command = [sys.executable, "-c", probe, json.dumps(HEAVY), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert json.loads(result.stderr.splitlines()[-1])["loaded"] == ["torch"]


@pytest.mark.parametrize("arguments", [["targets"], ["targets", "26.08-cuda-sm90", "--json"], ["doctor", "--json"]])
def test_looking_round_leaves_torch_to_a_child(arguments: list[str]) -> None:
    command = [sys.executable, "-c", PROBE, json.dumps(HEAVY), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert json.loads(result.stderr.splitlines()[-1])["loaded"] == []
    assert "26.08" in result.stdout or "C++ compiler" in result.stdout
