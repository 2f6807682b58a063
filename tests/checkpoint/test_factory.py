"""The user's own architecture: found, called, compared strictly, and blamed by line where it fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deploy.checkpoint.factory import call_factory
from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.errors import UsageError
from deploy.processes import run_alone
from tests.checkpoint.checkpoints import prefixed

CODE = """
import warnings

import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.model = nn.Linear(4, num_classes)

    def forward(self, features, bias=None):
        return self.model(features)

class Careful(Net):
    def __init__(self):
        super().__init__()
        assert float(self.model.weight.sum()) != 12345.0  # needs data while it is being built

class Scaled(Net):
    def __init__(self):
        super().__init__()
        self.scale = torch.ones_like(self.model.weight).max()  # outside the state_dict, and needed by forward

    def forward(self, features):
        return self.model(features) * self.scale

class Two(nn.Module):
    def forward(self, left, right):
        return left + right

def build():
    print("building")
    return Net()

def build_for(num_classes):
    return Net(num_classes)

def two():
    module = Two()
    module.weight = nn.Parameter(torch.ones(1))
    return module

def lazy():
    return nn.Sequential(nn.LazyLinear(2))

def careful():
    return Careful()

def as_in_training():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile imports what torch itself calls deprecated
        return nn.DataParallel(torch.compile(Net()))

def needs(path):
    return Net()

def fails():
    return {}["width"]

def gives_dict():
    return Net().state_dict()

number = 3
"""


FAILING_LINE = CODE.splitlines().index('    return {}["width"]') + 1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mynet.py").write_text(CODE)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "lacking.py").write_text("import nosuchpackage\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    for name in ("mynet", "broken", "lacking"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def ask(folder: Path, function: str, *, rows: int = 2, shapes: tuple[tuple[int, ...], ...] = ((4,),)) -> Checkpoint:
    state = {"model.weight": torch.arange(4.0 * rows).reshape(rows, 4), "model.bias": torch.ones(rows)}
    torch.save(state, folder / "weights.pt")
    return read_checkpoint(CheckpointRequest(path=folder / "weights.pt", factory=function, input_shapes=shapes))


@pytest.mark.parametrize("function", ["build", "build_for", "Net", "careful", "Scaled", "as_in_training"])
def test_a_factory_gives_the_module(function: str, folder: Path) -> None:
    checkpoint = ask(folder, f"mynet:{function}")
    assert checkpoint.architecture == f"factory/mynet:{function}"
    assert checkpoint.how == "factory"
    assert checkpoint.parameters == 10
    assert [(spec.name, spec.shape) for spec in checkpoint.inputs] == [("features", ("batch", 4))]
    assert checkpoint.removed_prefixes == ()
    assert checkpoint.preprocessing.source == "unknown"
    assert any("preprocessing: unknown" in note for note in checkpoint.notes)
    out = build_module(checkpoint)(torch.ones(1, 4))
    assert out.tolist() == [[7.0, 23.0]]


def test_a_factory_s_parameters_take_no_memory_of_their_own(folder: Path) -> None:
    module = call_factory("mynet:build", {}, filled={"model.weight", "model.bias"})
    assert all(parameter.is_meta for parameter in module.parameters())


@pytest.mark.parametrize("function", ["build_for", "Net"])
def test_the_number_of_classes_is_handed_over(function: str, folder: Path) -> None:
    checkpoint = ask(folder, f"mynet:{function}", rows=5)
    assert (checkpoint.options, checkpoint.num_classes) == ({"num_classes": 5}, 5)
    assert build_module(checkpoint)(torch.ones(1, 4)).shape == (1, 5)


def test_wrapper_prefixes_go_and_the_factory_s_own_stay(folder: Path) -> None:
    state = prefixed({"model.weight": torch.ones(2, 4), "model.bias": torch.ones(2)}, "module.")
    torch.save(state, folder / "ddp.pt")
    checkpoint = read_checkpoint(CheckpointRequest(path=folder / "ddp.pt", factory="mynet:build", input_shapes=((4,),)))
    assert checkpoint.removed_prefixes == ("module.",)
    assert build_module(checkpoint)(torch.ones(1, 4)).tolist() == [[5.0, 5.0]]


def test_what_a_factory_prints_stays_off_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask(folder, "mynet:build")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "building" in captured.err


def rows_of_output(checkpoint: Checkpoint) -> list[float]:
    return [float(value) for value in build_module(checkpoint)(torch.ones(1, 4))[0]]


def outputs_from_a_child(checkpoint: str) -> list[float]:
    return run_alone("child", rows_of_output, Checkpoint.model_validate_json(checkpoint)).value


def test_a_factory_works_in_a_child_process(folder: Path) -> None:
    checkpoint = ask(folder, "mynet:build")
    program = (
        "from tests.checkpoint.test_factory import outputs_from_a_child\n"
        f"print(outputs_from_a_child({checkpoint.model_dump_json()!r}))"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout.strip() == "[7.0, 23.0]", result.stderr


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_module_built_round_the_saved_network_takes_its_weights(prefix: str, folder: Path) -> None:
    """As one that scales its input first, or that gives one of a transformers network's outputs."""
    torch.save({f"{prefix}weight": torch.full((2, 4), 2.0), f"{prefix}bias": torch.zeros(2)}, folder / "w.pt")
    request = CheckpointRequest(path=folder / "w.pt", factory="mynet:Net", input_shapes=((4,),))
    checkpoint = read_checkpoint(request)
    assert checkpoint.removed_prefixes == (*([prefix] if prefix else ()), "+model.")
    assert rows_of_output(checkpoint) == [8.0, 8.0]
    torch.save({"weight": torch.full((2, 4), 2.0)}, folder / "w.pt")
    with pytest.raises(UsageError, match=r"missing: model\.weight, model\.bias"):
        read_checkpoint(request)


@pytest.mark.parametrize("where", ["above", "inside", "inside what hides it"])
def test_a_factory_may_import_torchvision_beside_any_torch(where: str, tmp_path: Path) -> None:
    """Beside a CPU torch PyPI's torchvision fails to import in a new process, until its operators are declared."""
    line = "import torchvision"
    code = [line, "def build():", "    return torchvision.ops.MLP(4, [2])"]
    inside = ["def build():", f"    {line}", "    return torchvision.ops.MLP(4, [2])"]
    if where == "inside what hides it":  # as transformers does
        inside[1:2] = [
            "    try:",
            f"        {line}",
            "    except Exception as error:",
            "        raise ImportError from error",
        ]
    (tmp_path / "seeing.py").write_text("\n".join(code if where == "above" else inside))
    torch.save({"0.weight": torch.ones(2, 4), "0.bias": torch.ones(2)}, tmp_path / "w.pt")
    command = ["-m", "deploy", "inspect", "w.pt", "--factory", "seeing:build", "--input-shape", "4"]
    result = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "factory/seeing:build" in result.stdout


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("mynet", ["no module and function in it", "package.module:function"]),
        ("nowhere.at.all:f", ["there is no module 'nowhere'", "PYTHONPATH"]),
        ("mynet:absent", ["mynet has no 'absent'"]),
        ("mynet:number", ["is of type int, not a function"]),
        ("mynet:needs", ["needs the arguments path", "wrap it"]),
        ("mynet:fails", ["raised KeyError: 'width'", f"mynet.py:{FAILING_LINE}"]),
        ("mynet:lazy", ["0.weight gets its size with the first call", "on zeros"]),
        ("mynet:gives_dict", ["gave an object of type OrderedDict", "torch.nn.Module"]),
        ("broken:f", ["SyntaxError", "broken.py:1"]),
        ("lacking:f", ["ModuleNotFoundError", "nosuchpackage", "lacking.py:1"]),
    ],
)
def test_a_factory_that_does_not_work_is_explained(reference: str, words: list[str], folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        ask(folder, reference)
    assert [word for word in words if word not in str(caught.value)] == []


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    torch.save({"model.weight": torch.ones(2, 9), "head.bias": torch.ones(2)}, folder / "other.pt")
    request = CheckpointRequest(path=folder / "other.pt", factory="mynet:build", input_shapes=((4,),))
    with pytest.raises(UsageError) as caught:
        read_checkpoint(request)
    message = str(caught.value)
    assert "missing: model.bias" in message
    assert "unexpected: head.bias" in message
    assert "model.weight is [2, 9], not [2, 4]" in message


@pytest.mark.parametrize("shapes", [(), ((4,), (4,), (4,))], ids=["none", "too many"])
def test_input_shapes_are_asked_for(shapes: tuple[tuple[int, ...], ...], folder: Path) -> None:
    with pytest.raises(UsageError, match=rf"{len(shapes)} input shapes .*features, bias[\s\S]*--input-shape"):
        ask(folder, "mynet:build", shapes=shapes)


def test_several_inputs_take_forward_s_names(folder: Path) -> None:
    torch.save({"weight": torch.ones(1)}, folder / "two.pt")
    request = CheckpointRequest(path=folder / "two.pt", factory="mynet:two", input_shapes=((4,), (4,)))
    assert [spec.name for spec in read_checkpoint(request).inputs] == ["left", "right"]


def test_integer_weights_are_refused(folder: Path) -> None:
    state = {"model.weight": torch.ones(2, 4, dtype=torch.int8), "model.bias": torch.ones(2)}
    torch.save(state, folder / "int.pt")
    with pytest.raises(UsageError, match=r"'model\.weight' is int8"):
        read_checkpoint(CheckpointRequest(path=folder / "int.pt", factory="mynet:build", input_shapes=((4,),)))
