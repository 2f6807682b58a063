"""Artifacts corrupted in ways that happen in life, each with what its failure must name.

`python -m tests.validate.mutants` judges them all and writes the table in docs/mutants.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from deploy.convert.flatten import positional
from deploy.convert.model import Artifact
from deploy.evidence import ParityEvidence
from tests.validate.models import SIZE, TinyNet, seeded_tiny
from tests.validate.rig import MAX_BATCH, Rig, convert, image_rig

Edit = Callable[[ModelProto], None]
Change = Callable[[TinyNet], None]
DOCUMENT = Path(__file__).parents[2] / "docs" / "mutants.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A slip, made in the ONNX graph (`edit`) or in the module before export (`change`), and what must name it.

    `check` is the first failed check, `named` words of the failure or of the place.
    """

    name: str
    check: str
    named: tuple[str, ...]
    edit: Edit | None = None
    change: Change | None = None

    def make(self, rig: Rig, clean: Artifact, folder: Path) -> Artifact:
        """The corrupted artifact, in `folder`."""
        if self.edit:
            return edited(clean, self.edit, folder)
        assert self.change
        return changed(rig, self.change, folder)


def edited(clean: Artifact, edit: Edit, folder: Path) -> Artifact:
    """A copy of a clean ONNX artifact with its graph changed."""
    model = onnx.load(clean.path)
    edit(model)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    return Artifact(format="onnx", folder=folder, files=("model.onnx",), seconds=0.0, peak_memory=0, details={})


def changed(rig: Rig, change: Change, folder: Path) -> Artifact:
    """An ONNX artifact of the rig's weights in a module that was changed before export."""
    module = seeded_tiny()
    change(module)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    exported = torch.export.export(
        positional(module), (torch.zeros(2, 3, SIZE, SIZE),), dynamic_shapes=(({0: batch},),)
    )
    folder.mkdir(parents=True)
    path = folder / "program.pt2"
    torch.export.save(exported, path)
    program = type(rig.program)(path=path, spec=rig.program.spec, digest="", seconds=0.0, peak_memory=0)
    return convert(program, "onnx", folder / "onnx")


def node(model: ModelProto, kind: str, position: int = 0) -> NodeProto:
    """The n-th node of an operator."""
    return [item for item in model.graph.node if item.op_type == kind][position]


def constant(model: ModelProto, name: str) -> TensorProto:
    """The initializer of that name."""
    return next(item for item in model.graph.initializer if item.name == name)


def replace_constant(model: ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change one initializer's values."""
    tensor = constant(model, name)
    array = np.ascontiguousarray(change(numpy_helper.to_array(tensor).copy()), dtype=np.float32)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def on_constant(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """An edit of one initializer."""
    return partial(replace_constant, name=name, change=change)


def set_attribute(kind: str, **values: Any) -> Edit:
    """An edit that gives the first node of an operator other attributes."""

    def edit(model: ModelProto) -> None:
        found = node(model, kind)
        kept = [item for item in found.attribute if item.name not in values]
        del found.attribute[:]
        found.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in values.items())])

    return edit


def with_nan(array: np.ndarray) -> np.ndarray:
    array[3, 5] = np.nan
    return array


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 of each value, as float32."""
    rounded: np.ndarray = torch.from_numpy(array).bfloat16().float().numpy()
    return rounded


def round_everything(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            replace_constant(model, tensor.name, to_bfloat16)


def drop_head_bias(model: ModelProto) -> None:
    """Remove the last layer's bias, the graph's reference to it and the tensor."""
    head = next(item for item in model.graph.node if "head.bias" in item.input)
    del head.input[2]
    model.graph.initializer.remove(constant(model, "head.bias"))


def swap_outputs(model: ModelProto) -> None:
    names = {"OUTPUT__0": "OUTPUT__1", "OUTPUT__1": "OUTPUT__0"}
    for item in model.graph.node:
        for index, name in enumerate(item.output):
            item.output[index] = names.get(name, name)


def fix_batch(model: ModelProto) -> None:
    """What an export with a constant batch leaves behind."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2


def answer_first_row(model: ModelProto) -> None:
    """Every row is answered as the first one: its features are taken for the whole batch."""
    first = node(model, "Gemm")
    source = first.input[0]
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), "first_row"))
    gathered = helper.make_node("Gather", [source, "first_row"], ["first_features"], axis=0)
    batch = helper.make_node("Shape", [source], ["all_rows"])
    spread = helper.make_node("Expand", ["first_features", "all_rows"], ["same_features"])
    first.input[0] = "same_features"
    position = list(model.graph.node).index(first)
    for item in (spread, batch, gathered):
        model.graph.node.insert(position, item)


def forget_residual(model: ModelProto) -> None:
    """The addition of a residual connection passes one side on."""
    add = node(model, "Add")
    add.op_type = "Identity"
    del add.input[0]


def leave_dropout_on(model: ModelProto) -> None:
    """What dropout does in training, before the head: ONNX Runtime itself ignores a Dropout in training mode."""
    head = next(item for item in model.graph.node if "head.weight" in item.input)
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.3, np.float32), "rate"))
    position = list(model.graph.node).index(head)
    for item in (
        helper.make_node("Mul", [head.input[0], "kept"], ["dropped"]),
        helper.make_node("Cast", ["drawn"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Greater", ["random", "rate"], ["drawn"]),
        helper.make_node("RandomUniformLike", [head.input[0]], ["random"]),
    ):
        model.graph.node.insert(position, item)
    head.input[0] = "dropped"


def use_other_weights(model: ModelProto) -> None:
    """The weights of another fine-tune: a little different everywhere, and variances still positive."""
    generator = np.random.default_rng(7)
    for name in [tensor.name for tensor in model.graph.initializer if tensor.name.count(".") == 1]:
        replace_constant(model, name, lambda array: array + 0.05 * np.abs(generator.standard_normal(array.shape)))


def relu6_without_ceiling(model: ModelProto) -> None:
    clip = node(model, "Clip")
    clip.op_type = "Relu"
    del clip.input[1:]


def change_stem_epsilon(module: TinyNet) -> None:
    module.stem_norm.eps = 1e-3


def use_silu(model: ModelProto) -> None:
    found = node(model, "HardSwish")
    position = list(model.graph.node).index(found)
    found.op_type = "Mul"
    found.input.append("gate")
    model.graph.node.insert(position, helper.make_node("Sigmoid", [found.input[0]], ["gate"]))


def forget_statistics(module: TinyNet) -> None:
    module.conv_norm.reset_running_stats()


def shift_classes(array: np.ndarray) -> np.ndarray:
    return np.roll(array, 1, axis=0)


def shift_head(model: ModelProto) -> None:
    for name in ("head.weight", "head.bias"):
        replace_constant(model, name, shift_classes)


MUTANTS = (
    Mutant(
        name="batch normalisation's epsilon 1e-3 for 1e-5",
        check="error",
        named=("stem_norm BatchNorm2d", "epsilon=0.0010000000474974513"),
        change=change_stem_epsilon,
    ),
    Mutant(
        name="layer normalisation's epsilon 1e-3 for 1e-5",
        check="error",
        named=("norm LayerNorm", "epsilon=0.001"),
        edit=set_attribute("LayerNormalization", epsilon=1e-3),
    ),
    Mutant(
        name="one weight tensor off by 1e-3",
        check="error",
        named=("mix.weight is scaled by 1.001",),
        edit=on_constant("mix.weight", lambda array: array * np.float32(1.001)),
    ),
    Mutant(
        name="weights rounded to bfloat16 under an fp32 label",
        check="error",
        named=("packaged constants", "rounded to bfloat16"),
        edit=round_everything,
    ),
    Mutant(
        name="input channels in the order BGR",
        check="error",
        named=("stem.weight", "axis 1 in another order"),
        edit=on_constant("stem.weight", lambda array: array[:, ::-1]),
    ),
    Mutant(name="last bias dropped", check="error", named=("head.bias", "not in the artifact"), edit=drop_head_bias),
    Mutant(
        name="GELU by tanh for GELU by erf",
        check="error",
        named=("act GELU", "approximate=tanh"),
        edit=set_attribute("Gelu", approximate="tanh"),
    ),
    Mutant(name="dropout left on", check="repeat", named=("dropout", "left on"), edit=leave_dropout_on),
    Mutant(
        name="weights of another fine-tune",
        check="error",
        named=("packaged constants", "another training run"),
        edit=use_other_weights,
    ),
    Mutant(name="two outputs exchanged", check="error", named=("exchanged", "'logits'", "'coarse'"), edit=swap_outputs),
    Mutant(name="batch fixed at the sample's size", check="run", named=("alone", "2"), edit=fix_batch),
    Mutant(name="every row answered as the first", check="error", named=("mix Linear",), edit=answer_first_row),
    Mutant(
        name="one NaN in a weight",
        check="finite",
        named=("mix.weight holds 1 NaN", "[3, 5]"),
        edit=on_constant("mix.weight", with_nan),
    ),
    Mutant(name="ReLU for ReLU6", check="error", named=("conv_act ReLU6",), edit=relu6_without_ceiling),
    Mutant(name="SiLU for Hardswish", check="error", named=("stem_act Hardswish",), edit=use_silu),
    Mutant(
        name="a square weight transposed",
        check="error",
        named=("mix.weight is transposed",),
        edit=on_constant("mix.weight", np.transpose),
    ),
    Mutant(name="classes shifted by one", check="error", named=("shifted by one class",), edit=shift_head),
    Mutant(name="a residual connection lost", check="error", named=("dropout", "head Linear"), edit=forget_residual),
    Mutant(
        name="batch statistics never trained",
        check="error",
        named=("conv_norm.running_mean is all zeros",),
        change=forget_statistics,
    ),
)


def first_words(evidence: ParityEvidence) -> str:
    """Everything a user reads of a failure: the reason and the place."""
    place = evidence.place.message if evidence.place else ""
    return f"{evidence.judgement.reason}\n{place}"


def table(rows: list[tuple[str, ParityEvidence]]) -> str:
    """The document: what was done, and by what it was caught and named."""
    lines = [
        "# Mutants: what the parity gate catches",
        "",
        "Each row is an artifact that was corrupted on purpose and then judged. The model is `TinyNet` in",
        "`tests/validate/models.py`; the table is written by `python -m tests.validate.mutants`, the test is",
        "`tests/validate/test_mutants.py`. A multiple is the worst error over eager's own (10 passes).",
        "",
        "| mutant | check | multiple | what the place says |",
        "| --- | --- | --- | --- |",
    ]
    for name, evidence in rows:
        worst = max((output.max_multiple for output in evidence.outputs), default=float("nan"))
        place = evidence.place.message if evidence.place else evidence.judgement.reason
        shown = "-" if np.isnan(worst) else f"{worst:,.0f}"
        lines.append(f"| {name} | {evidence.failures[0].check} | {shown} | {place.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rig = image_rig(seeded_tiny(), "tiny", folder)
        clean = convert(rig.program, "onnx", folder / "clean")
        rows = [
            (mutant.name, rig.judge(mutant.make(rig, clean, folder / str(number))))
            for number, mutant in enumerate(MUTANTS)
        ]
    DOCUMENT.write_text(table(rows))


if __name__ == "__main__":
    main()
