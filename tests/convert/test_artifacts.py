"""Both formats of tiny models, made as the command makes them, opened and run."""

import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch._inductor.config
from torch import nn

from deploy.checkpoint.vision import import_torchvision
from deploy.convert.aoti import compile_aoti
from deploy.convert.compiler import only_avx2, require_compiler
from deploy.convert.model import Artifact, Format, Program
from deploy.convert.onnx import export_onnx
from deploy.convert.run import Conversion, convert
from deploy.errors import MissingError, UnfinishedError
from deploy.processes import Worker, run_alone
from deploy.progress import Silent
from deploy.repository.onnx_header import read_onnx_header
from deploy.repository.preflight import read_archive_metadata
from deploy.validate.executables import AotiModel, OnnxModel
from tests.convert.helpers import Read, plan, target
from tests.models import IMAGE, ConvNet, TwoTowers

Arrays = list[np.ndarray]


def make(
    folder: Path,
    factory: Callable[[], nn.Module],
    *shapes: tuple[int, ...],
    max_batch: int,
    formats: tuple[Format, ...] = (),
) -> Conversion:
    folder.mkdir(exist_ok=True)
    conversion = convert(Read(folder)(factory, *shapes), plan(folder, *formats, max_batch=max_batch), Silent())
    assert not conversion.failures, conversion.failures
    return conversion


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    return make(tmp_path_factory.mktemp("two towers"), TwoTowers, (6,), (3,), max_batch=4)


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    return make(tmp_path_factory.mktemp("static"), ConvNet, IMAGE, max_batch=1)


def outputs(conversion: Conversion, format_: Format, inputs: Arrays) -> Arrays:
    kind = {"aoti": AotiModel, "onnx": OnnxModel}[format_]
    with Worker("model", log=Path(os.devnull)) as worker:
        worker.make(kind, conversion.artifacts[format_].path, threads=1)
        result: Arrays = worker.call("run", inputs)
    return result


def eager(factory: Callable[[], nn.Module], checkpoint: Path, inputs: Arrays) -> Any:
    import torch

    module = factory()
    module.load_state_dict(torch.load(checkpoint, weights_only=True))  # noqa: TID251 - what the test itself wrote
    with torch.no_grad():
        return module.eval()(*(torch.from_numpy(array) for array in inputs))


def seeded(*shapes: tuple[int, ...]) -> Arrays:
    random = np.random.default_rng(0)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("format_", ["aoti", "onnx"])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_dict_outputs_come_in_the_specs_order_at_every_batch(towers: Conversion, format_: Format, batch: int) -> None:
    inputs = seeded((batch, 6), (batch, 3))

    found = outputs(towers, format_, inputs)

    wanted = eager(TwoTowers, towers.program.path.parents[1] / "twotowers.pt", inputs)
    assert [tensor.name for tensor in towers.program.spec.outputs] == list(wanted)
    for array, tensor in zip(found, wanted.values(), strict=True):
        np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("format_", ["aoti", "onnx"])
def test_static_artifact_runs_its_one_row(static: Conversion, format_: Format) -> None:
    inputs = seeded((1, *IMAGE))

    (found,) = outputs(static, format_, inputs)

    wanted = eager(ConvNet, static.program.path.parents[1] / "convnet.pt", inputs)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_static_onnx_has_no_symbolic_dimension(static: Conversion) -> None:
    graph = onnx.load(static.artifacts["onnx"].path).graph

    assert [_shape(value) for value in graph.input] == [[1, *IMAGE]]
    assert [_shape(value) for value in graph.output] == [[1, 5]]


def test_onnx_tensors_have_wire_names_and_a_named_batch(towers: Conversion) -> None:
    graph = onnx.load(towers.artifacts["onnx"].path).graph

    assert {value.name: _shape(value) for value in graph.input} == {
        "INPUT__0": ["batch", 6],
        "INPUT__1": ["batch", 3],
    }
    assert {value.name: _shape(value) for value in graph.output} == {
        "OUTPUT__0": ["batch"],
        "OUTPUT__1": ["batch", 4],
        "OUTPUT__2": ["batch", 4],
    }


def test_both_artifacts_tell_of_themselves_without_being_loaded(towers: Conversion) -> None:
    artifact = towers.artifacts["onnx"]
    header = read_onnx_header(artifact.path)
    assert (header.opset, header.ir_version) == (int(artifact.details["opset"]), int(artifact.details["ir_version"]))
    facts = read_archive_metadata(towers.artifacts["aoti"].path)
    assert facts["AOTI_DEVICE_KEY"] == "cpu"
    assert (facts["AOTI_PLATFORM"], facts["AOTI_MACHINE"]) == (sys.platform, platform.machine())
    assert facts["AOTI_CPU_ISA"] == "AVX2"


def test_aoti_call_is_one_tuple_of_tensors_and_a_flat_list(towers: Conversion) -> None:
    inputs, results = run_alone("call spec", call_spec, towers.artifacts["aoti"].path).value

    assert re.findall(r"builtins\.(\w+)", inputs) == ["tuple", "tuple", "dict"]
    assert inputs.count('"type": null') == 2
    assert re.findall(r"builtins\.(\w+)", results) == ["list"]
    assert results.count('"type": null') == 3


def call_spec(path: Path) -> list[str]:
    from torch._inductor import aoti_load_package

    spec: list[str] = aoti_load_package(str(path)).loader.get_call_spec()
    return spec


def test_onnx_stays_at_the_targets_ceilings(towers: Conversion) -> None:
    artifact = towers.artifacts["onnx"]
    model = onnx.load(artifact.path)

    opsets = {entry.domain: entry.version for entry in model.opset_import}
    assert opsets[""] == target().opset == int(artifact.details["opset"])
    assert model.ir_version == target().ir_version == int(artifact.details["ir_version"])


def test_onnx_above_the_ceiling_is_refused(towers: Conversion, tmp_path: Path) -> None:
    old = target().model_copy(update={"name": "an-old-one", "opset": 12})

    with pytest.raises(UnfinishedError, match=r"opset \d+(.|\n)*at most opset 12(.|\n)*an-old-one"):
        run_alone("onnx", export_onnx, towers.program, target=old, folder=tmp_path)


def test_onnx_over_the_inline_limit_is_a_folder_with_the_weights_beside(static: Conversion, tmp_path: Path) -> None:
    done = run_alone("onnx", export_onnx, static.program, target=target(), folder=tmp_path, inline_limit=100)

    assert done.value.files == ("model.onnx/model.onnx", "model.onnx/model.onnx.data")
    beside = Conversion(program=static.program, artifacts={"onnx": done.value}, failures={})
    inputs = seeded((1, *IMAGE))
    np.testing.assert_array_equal(outputs(beside, "onnx", inputs), outputs(static, "onnx", inputs))
    assert (tmp_path / done.value.files[1]).stat().st_size >= 4 * 8 * 8 * 3 * 3  # the second convolution's weight


def test_artifacts_hold_no_path_of_this_machine(towers: Conversion) -> None:
    marks = [os.fsencode(towers.program.path.parent), os.fsencode(Path(nn.__file__).parents[1]), b"models.py"]
    contents = {"onnx": towers.artifacts["onnx"].path.read_bytes()}
    with zipfile.ZipFile(towers.artifacts["aoti"].path) as archive:
        contents |= {name: archive.read(name) for name in archive.namelist()}

    found = [(name, mark) for name, data in contents.items() for mark in marks if mark in data]

    assert found == []


def test_aoti_archive_is_called_model_and_says_its_isa(towers: Conversion) -> None:
    artifact = towers.artifacts["aoti"]

    with zipfile.ZipFile(artifact.path) as archive:
        assert any(name.startswith("model/data/aotinductor/model/") for name in archive.namelist())
    assert artifact.details["cpu_isa"] == "AVX2"
    assert artifact.details["march"] == "x86-64-v3"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instruction sets are those of x86")
def test_torch_tries_no_instruction_set_but_the_targets() -> None:
    from torch._inductor import cpu_vec_isa

    class Tried(cpu_vec_isa.VecAVX2):
        tried = 0

        def __bool__(self) -> bool:
            type(self).tried += 1
            return False

    cpu_vec_isa.supported_vec_isa_list.append(Tried())
    try:
        cpu_vec_isa.valid_vec_isa_list.cache_clear()
        with torch._inductor.config.patch({"cpp.vec_isa_ok": True}), only_avx2():
            assert [type(isa).__name__ for isa in cpu_vec_isa.valid_vec_isa_list()] == ["VecAVX2"]
        assert Tried.tried == 0
        with torch._inductor.config.patch({"cpp.vec_isa_ok": True}):
            cpu_vec_isa.valid_vec_isa_list()
        assert Tried.tried == 1
    finally:
        cpu_vec_isa.supported_vec_isa_list.pop()
        cpu_vec_isa.valid_vec_isa_list.cache_clear()


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump (binutils) is not here")
def test_aoti_for_avx2_holds_no_avx512_code(towers: Conversion, tmp_path: Path) -> None:
    with zipfile.ZipFile(towers.artifacts["aoti"].path) as archive:
        (library,) = (archive.extract(name, tmp_path) for name in archive.namelist() if name.endswith(".so"))

    code = subprocess.run(["objdump", "-d", library], capture_output=True, text=True, check=True).stdout

    assert "%ymm" in code
    assert "%zmm" not in code
    assert not re.search(r"%k[1-7]", code)


def test_nothing_but_artifacts_is_left_in_their_folders(towers: Conversion) -> None:
    assert towers.artifacts.keys() == {"aoti", "onnx"}
    for artifact in towers.artifacts.values():
        assert sorted(path.name for path in artifact.folder.iterdir()) == sorted(artifact.files)


def test_onnx_of_two_conversions_is_the_same_file(towers: Conversion, tmp_path: Path) -> None:
    again = make(tmp_path / "again", TwoTowers, (6,), (3,), max_batch=4, formats=("onnx",))

    assert again.program.digest == towers.program.digest
    assert again.artifacts["onnx"].path.read_bytes() == towers.artifacts["onnx"].path.read_bytes()


@pytest.mark.slow
def test_aoti_of_two_conversions_is_the_same_file(towers: Conversion, tmp_path: Path) -> None:
    again = make(tmp_path / "elsewhere", TwoTowers, (6,), (3,), max_batch=4, formats=("aoti",))

    assert again.artifacts["aoti"].path.read_bytes() == towers.artifacts["aoti"].path.read_bytes()


def test_missing_compiler_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")

    with pytest.raises(MissingError, match=r"no-such-compiler(.|\n)*apt-get install g\+\+"):
        require_compiler()


def test_compiler_that_cannot_compile_is_found_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "g++-9"
    old.write_text("#!/bin/sh\necho \"cc1plus: error: bad value ('x86-64-v3') for '-march=' switch\" >&2\nexit 1\n")
    old.chmod(0o755)
    monkeypatch.setenv("CXX", str(old))

    with pytest.raises(MissingError, match=r"g\+\+-9 cannot compile(.|\n)*bad value(.|\n)*g\+\+ 11 or newer"):
        require_compiler()


def test_compiler_of_this_machine_is_fit() -> None:
    assert Path(require_compiler()).exists()


def test_compiler_that_fails_ends_the_conversion_with_its_message(towers: Conversion, tmp_path: Path) -> None:
    with pytest.raises(UnfinishedError, match="AOTInductor cannot compile"):
        run_alone("aoti", compile_with, "false", towers.program, tmp_path)


def compile_with(compiler: str, program: Program, folder: Path) -> Artifact:
    os.environ["CXX"] = compiler
    return compile_aoti(program, target=target(), folder=folder)


class Weightless(nn.Module):
    """Has a weight that its forward does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@pytest.mark.slow
def test_a_forward_without_weights_is_compiled_and_loaded(tmp_path: Path) -> None:
    conversion = make(tmp_path, Weightless, (6,), max_batch=4, formats=("aoti",))
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    (y,) = outputs(conversion, "aoti", [x])
    assert np.array_equal(y, 2 * x)


@pytest.mark.slow
def test_formats_of_a_real_network_agree(tmp_path: Path) -> None:
    conversion = make(tmp_path, import_torchvision().models.resnet18, (3, 224, 224), max_batch=8)

    inputs = seeded((3, 3, 224, 224))
    (left,), (right,) = (outputs(conversion, format_, inputs) for format_ in ("aoti", "onnx"))
    np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
