"""A program of torch.export is its own architecture: read, vetted before it is loaded, and run in float64."""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim
from torch.utils import _pytree as pytree

from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.checkpoint.model import Checkpoint, CheckpointRequest, DynamicRequest, PreprocessingRequest, ValuesRequest
from deploy.checkpoint.program import check_batch
from deploy.checkpoint.vetting import GRAPH
from deploy.convert.export import export_program
from deploy.errors import UsageError
from deploy.files import sha256_file
from deploy.spec import BATCH
from tests.checkpoint.programs import Answer, Answering, Caster, Growing, Nested, Plain, Ruled, save, save_program
from tests.models import IMAGE, ConvNet, TwoTowers


def read(path: Path, **about: Any) -> Checkpoint:
    return read_checkpoint(CheckpointRequest(path=path, **about))


def refusal(path: Path, **about: Any) -> str:
    with pytest.raises(UsageError) as caught:
        read(path, **about)
    return str(caught.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    save_program(path)
    return path


def test_a_program_tells_its_contract(saved: Path) -> None:
    checkpoint = read(saved)
    assert (checkpoint.format, checkpoint.how, checkpoint.name) == ("program", "program", "net")
    assert checkpoint.architecture == "program/tests.models.ConvNet"
    assert checkpoint.digest == sha256_file(saved)
    assert [(tensor.name, tensor.shape) for tensor in checkpoint.inputs] == [("image", (BATCH, *IMAGE))]
    assert (checkpoint.options, checkpoint.dtype, checkpoint.parameters) == ({"batch": [1, None]}, "float32", 869)


def test_an_output_of_a_class_that_is_not_known_here_is_told_by_its_fields(tmp_path: Path) -> None:
    torch.export.register_dataclass(Answer, serialized_type_name="author.Answer")
    network = Answering()
    save(tmp_path / "p.pt2", network, (torch.randn(4, 6),), dynamic_shapes=({0: Dim("n", max=16)},))
    pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.pop("author.Answer")  # as in a process without the author's code
    checkpoint = read(tmp_path / "p.pt2")
    x = torch.randn(3, 6)
    found = build_module(checkpoint)(x)
    assert list(found) == ["scores", "sign"]
    torch.testing.assert_close(found["scores"], network(x).scores)


def test_its_own_dynamic_sizes_become_the_spec(tmp_path: Path) -> None:
    shapes = ({0: Dim("n", max=16), 2: Dim("h", min=16, max=64), 3: Dim("w", min=16, max=48)},)
    save(tmp_path / "p.pt2", ConvNet(), (torch.randn(4, *IMAGE),), dynamic_shapes=shapes)
    checkpoint = read(tmp_path / "p.pt2")
    assert checkpoint.inputs[0].shape == (BATCH, 3, "image_2", "image_3")
    assert [(dim.name, dim.minimum, dim.maximum) for dim in checkpoint.dims] == [
        ("image_2", 16, 64),
        ("image_3", 16, 48),
    ]
    program = export_program(checkpoint, max_batch=8, folder=tmp_path)
    assert program.spec.inputs[0].shape == (BATCH, 3, "image_2", "image_3")
    assert {dim.name: dim.maximum for dim in program.spec.dims} == {BATCH: 8, "image_2": 64, "image_3": 48}


def test_a_program_runs_in_float64_though_its_graph_names_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Caster(), torch.randn(4, 6)
    save(tmp_path / "p.pt2", module, (x,), dynamic_shapes=({0: Dim.AUTO},))
    checkpoint = read(tmp_path / "p.pt2")
    found = build_module(checkpoint, "float64")(x.double())
    exact = ((module.body.double()(x.double()) - 0.25) * module.scale.double()).detach()
    assert found.dtype is torch.float64
    assert float((found - exact).abs().max()) < 1e-14
    plain = build_module(checkpoint)(x)
    assert plain.dtype is torch.float32
    assert float((plain.double() - exact).abs().max()) > 1e-9


def test_nested_inputs_and_those_fixed_at_export(tmp_path: Path) -> None:
    module, left, right, bias = Nested(), torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 4)
    n = Dim("n")
    shapes = {"parts": {"left": {0: n}, "right": {0: n}}, "times": None, "bias": {0: n}}
    save(tmp_path / "p.pt2", module, ({"left": left, "right": right}, 3), kwargs={"bias": bias}, dynamic_shapes=shapes)
    checkpoint = read(tmp_path / "p.pt2")
    assert [tensor.name for tensor in checkpoint.inputs] == ["parts_left", "parts_right", "bias"]
    found = build_module(checkpoint)(left, right, bias)
    assert torch.equal(found["sum"], module({"left": left, "right": right}, 3, bias=bias)["sum"])
    spec = export_program(checkpoint, max_batch=4, folder=tmp_path).spec
    assert [output.name for output in spec.outputs] == ["sum", "sign"]


def test_keyword_inputs(tmp_path: Path) -> None:
    n, arguments = Dim("n"), (torch.randn(4, 6), torch.randn(4, 3))
    save(
        tmp_path / "p.pt2", TwoTowers(), arguments[:1], kwargs={"right": arguments[1]}, dynamic_shapes=({0: n}, {0: n})
    )
    checkpoint = read(tmp_path / "p.pt2")
    spec = export_program(checkpoint, max_batch=4, folder=tmp_path).spec
    assert [tensor.name for tensor in spec.inputs] == ["left", "right"]
    assert len(spec.outputs) == 3


@pytest.mark.parametrize(
    "option", ["--arch", "--factory", "--input-shape", "--dynamic", "--weights", "--fuse-preprocess"]
)
def test_what_the_program_says_itself_is_not_asked(option: str, saved: Path) -> None:
    about: dict[str, dict[str, Any]] = {
        "--arch": {"arch": "resnet18"},
        "--factory": {"factory": "a:b"},
        "--input-shape": {"input_shapes": ((3,),)},
        "--dynamic": {"dynamic": (DynamicRequest(input="image", axes=((2, None),)),)},
        "--weights": {"weights": "raw"},
        "--fuse-preprocess": {"preprocessing": PreprocessingRequest(fuse=True)},
    }
    assert f"leave out {option}" in refusal(saved, **about[option])


def test_integer_inputs_take_the_range_that_was_asked_for(tmp_path: Path) -> None:
    tokens = torch.nn.Sequential(torch.nn.Embedding(50, 4), torch.nn.Flatten(), torch.nn.Linear(24, 2))
    save(tmp_path / "p.pt2", tokens, (torch.zeros(2, 6, dtype=torch.int64),), dynamic_shapes=({0: Dim("n")},))
    checkpoint = read(tmp_path / "p.pt2", values=(ValuesRequest(input="input", range=(0, 49)),))
    assert [(one.name, one.dtype, one.values) for one in checkpoint.inputs] == [("input", "int64", (0, 49))]


def test_a_batch_that_the_program_was_not_made_for_is_refused(tmp_path: Path) -> None:
    save_program(tmp_path / "p.pt2", batch=Dim("n", max=4))
    checkpoint = read(tmp_path / "p.pt2")
    assert checkpoint.options == {"batch": [1, 4]}
    check_batch(checkpoint.options, 4)
    with pytest.raises(UsageError, match="exported for a batch of 4 at most"):
        export_program(checkpoint, max_batch=8, folder=tmp_path)


def test_a_static_program_serves_one_sample_at_a_time(tmp_path: Path) -> None:
    save_program(tmp_path / "p.pt2", batch=0, rows=1)
    checkpoint = read(tmp_path / "p.pt2")
    with pytest.raises(UsageError, match=r"exported for a batch of 1 alone(.|\n)*--max-batch 1"):
        export_program(checkpoint, max_batch=8, folder=tmp_path)
    assert export_program(checkpoint, max_batch=1, folder=tmp_path).spec.inputs[0].shape == (1, *IMAGE)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a fixed batch": (lambda path: save_program(path, batch=0, rows=4), "the batch first, dynamic or 1"),
    "no lone sample": (lambda path: save_program(path, batch=Dim("n", min=3, max=8)), "batches of 3 and more"),
    "training mode": (lambda path: save_program(path, training=True), "exported in training mode: aten.batch_norm"),
    "state": (lambda path: save(path, Growing(), (torch.randn(1, 6),)), "changes its own state when it runs: calls"),
    "bfloat16": (
        lambda path: save(path, ConvNet().bfloat16(), (torch.randn(1, *IMAGE).bfloat16(),)),
        "a program that computes in bfloat16",
    ),
    "unbounded": (
        lambda path: save(path, Caster(), (torch.randn(2, 5, 6),), dynamic_shapes=({0: Dim("n"), 1: Dim("s")},)),
        "axis 1 of input 'x'",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_served_is_refused(what: str, tmp_path: Path) -> None:
    put, words = REFUSED[what]
    put(tmp_path / "p.pt2")
    assert words in refusal(tmp_path / "p.pt2")


def rewritten(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The archive with its entries changed; entries are named without the archive's own folder."""
    with zipfile.ZipFile(source) as archive:
        root = archive.namelist()[0].partition("/")[0]
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in entries.items():
            archive.writestr(f"{root}/{name}", data)
    return target


def graph_with(old: str, new: str) -> Callable[[dict[str, bytes]], None]:
    def change(entries: dict[str, bytes]) -> None:
        assert old.encode() in entries[GRAPH]
        entries[GRAPH] = entries[GRAPH].replace(old.encode(), new.encode())

    return change


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.witness,)


@pytest.mark.parametrize(
    "target",
    ["torch.os.system", "torch.ops.load_library", "torch.hub.load", "_operator.attrgetter", "builtins.eval", "#x"],
)
def test_a_graph_that_calls_no_operator_is_refused(target: str, saved: Path, tmp_path: Path) -> None:
    path = rewritten(saved, tmp_path / "p.pt2", graph_with("torch.ops.aten.relu.default", target))
    assert f"its graph calls {target!r}" in refusal(path)


@pytest.mark.parametrize(
    "formula",
    [
        "__import__('os').system('x')",
        "Symbol('s0').__class__",
        "exec",
        "open('x')",
        "s0 if s0 else s1",
        "(lambda: 1)()",
        "Symbol('s0 + 1')",
        "Add('s0', 1)",
        "[s0]",
        "Symbol('s0', positive='x')",
        "(",
    ],
)
def test_a_size_that_is_no_formula_is_refused(formula: str, saved: Path, tmp_path: Path) -> None:
    def change(entries: dict[str, bytes]) -> None:
        graph = json.loads(entries[GRAPH])
        graph["more"] = [{"as_expr": {"expr_str": formula}}]
        entries[GRAPH] = json.dumps(graph).encode()

    assert "it gives a size as" in refusal(rewritten(saved, tmp_path / "p.pt2", change))


@pytest.mark.parametrize(
    "name", ["data/sample_inputs/model.pt", "data/weights/model.pt", "data/constants/opaque_obj_0"]
)
def test_a_pickle_that_would_run_code_is_refused_and_does_not(name: str, saved: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    def change(entries: dict[str, bytes]) -> None:
        if name.endswith(".pt"):
            torch.save(Evil(witness), tmp_path / "evil.pt")
            entries[name] = (tmp_path / "evil.pt").read_bytes()
        else:
            entries[name] = pickle.dumps(Evil(witness))

    message = refusal(rewritten(saved, tmp_path / "p.pt2", change))
    assert "could run any code" in message
    assert "--trust-pickle" in message
    assert not witness.exists()


def test_a_weight_that_says_it_is_a_pickle_is_looked_at(saved: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    def change(entries: dict[str, bytes]) -> None:
        table = json.loads(entries["data/weights/model_weights_config.json"])
        table["config"]["head.bias"]["use_pickle"] = True
        entries["data/weights/model_weights_config.json"] = json.dumps(table).encode()
        torch.save(Evil(witness), tmp_path / "evil.pt")
        entries[f"data/weights/{table['config']['head.bias']['path_name']}"] = (tmp_path / "evil.pt").read_bytes()

    assert "could run any code" in refusal(rewritten(saved, tmp_path / "p.pt2", change))
    assert not witness.exists()


def test_a_damaged_graph_and_an_unknown_operator_are_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.pt2"
    assert "truncated or damaged" in refusal(rewritten(saved, path, lambda entries: entries.update({GRAPH: b"{"})))
    rewritten(saved, path, graph_with("torch.ops.aten.relu.default", "torch.ops.elsewhere.relu.default"))
    assert "cannot be loaded by torch" in refusal(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    module = Caster()
    with torch.no_grad():
        module.body.bias[1] = float("nan")
    save(tmp_path / "p.pt2", module, (torch.randn(4, 6),), dynamic_shapes=({0: Dim("n")},))
    assert "'body.bias' has 1 NaN" in refusal(tmp_path / "p.pt2")


def test_a_mask_of_minus_infinity_is_no_broken_weight(tmp_path: Path) -> None:
    save(tmp_path / "p.pt2", Ruled(), (torch.randn(1, 6),))
    assert read(tmp_path / "p.pt2").how == "program"


def test_the_content_decides_not_the_suffix(saved: Path, tmp_path: Path) -> None:
    shutil.copyfile(saved, tmp_path / "net.pt")
    assert read(tmp_path / "net.pt").how == "program"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("model/data/aotinductor/model/model.wrapper.so", "machine code, already compiled"),
        ("serialized_exported_program.json", "of an old release, or of several programs"),
    ],
)
def test_other_archives_of_the_suffix_are_told_apart(entry: str, said: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        archive.writestr(entry, b"")

    assert said in refusal(tmp_path / "model.pt2")


def test_what_is_exchanged_otherwise_is_exported_so(tmp_path: Path) -> None:
    save(tmp_path / "p.pt2", Plain(), (torch.randn(4, 6), "x"), dynamic_shapes=({0: Dim("n")}, None))
    checkpoint = read(tmp_path / "p.pt2")
    assert [tensor.name for tensor in checkpoint.inputs] == ["x"]
    program = export_program(checkpoint, max_batch=4, folder=tmp_path)
    assert [(one.dtype, one.shape) for one in program.spec.outputs] == [
        ("float32", (BATCH, 4)),
        ("float32", (BATCH, 1)),
    ]


def test_what_torch_could_not_load_is_said(tmp_path: Path) -> None:
    class Named(Plain):
        def forward(self, x: torch.Tensor, mode: str) -> tuple[torch.Tensor, str]:  # type: ignore[override]
            return self.body(x), mode

    save(tmp_path / "p.pt2", Named(), (torch.randn(4, 6), "x"), dynamic_shapes=({0: Dim("n")}, None))
    assert "Unable to deserialize output node" in refusal(tmp_path / "p.pt2")
