import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from deploy.checkpoint.model import Checkpoint
from deploy.convert.explain import explain_export_error
from deploy.convert.export import export_program, load_program
from deploy.convert.model import Program
from deploy.convert.traced import sample_rows, seeded_inputs
from deploy.errors import ExitCode, UnfinishedError, UsageError
from deploy.processes import run_alone
from deploy.spec import Dim, TensorSpec
from tests.convert.helpers import Read
from tests.models import (
    IMAGE,
    ConstantBatch,
    ConvNet,
    DataDependent,
    LoneNumber,
    MeanOfAll,
    Nested,
    NotATensor,
    OverTheBatch,
    TwiceTheBatch,
    TwoTowers,
    WrongSize,
)


def export(checkpoint: Checkpoint, folder: Path, *, max_batch: int = 4) -> Program:
    return run_alone("export", export_program, checkpoint, max_batch=max_batch, folder=folder).value


def parameters_and_rows(program: Program) -> tuple[set[str], int]:
    exported = load_program(program)
    (rows,) = exported.module()(torch.zeros(1, *IMAGE))
    return set(exported.state_dict), len(rows)


def rows_as_decomposed(program: Program) -> list[int]:
    decomposed = load_program(program).run_decompositions({}).module()
    return [len(decomposed(torch.zeros(rows, *IMAGE))[0]) for rows in (1, 2)]


def test_image_classifier_has_a_dynamic_batch_and_a_decision(read: Read, tmp_path: Path) -> None:
    spec = export(read(ConvNet, IMAGE), tmp_path, max_batch=8).spec

    assert spec.inputs[0].shape == ("batch", *IMAGE)
    assert spec.outputs == (TensorSpec(name="output", dtype="float32", shape=("batch", 5), decision_axis=1),)
    assert spec.dims == (Dim(name="batch", minimum=1, maximum=8),)


def test_largest_batch_of_1_gives_a_static_program(read: Read, tmp_path: Path) -> None:
    spec = export(read(ConvNet, IMAGE), tmp_path, max_batch=1).spec

    assert spec.inputs[0].shape == (1, *IMAGE)
    assert spec.outputs[0].shape == (1, 5)
    assert spec.dims == ()


def test_largest_batch_of_2_is_dynamic_too(read: Read, tmp_path: Path) -> None:
    spec = export(read(ConvNet, IMAGE), tmp_path, max_batch=2).spec

    assert spec.max_batch == 2
    assert spec.outputs[0].shape == ("batch", 5)


def test_a_largest_batch_of_2_is_no_constant_in_what_converters_load(read: Read, tmp_path: Path) -> None:
    program = export(read(MeanOfAll, IMAGE), tmp_path, max_batch=2)
    assert run_alone("load", rows_as_decomposed, program).value == [1, 2]


def test_several_inputs_and_a_dict_of_outputs(read: Read, tmp_path: Path) -> None:
    spec = export(read(TwoTowers, (6,), (3,)), tmp_path).spec

    assert [tensor.name for tensor in spec.inputs] == ["left", "right"]
    assert [(tensor.name, tensor.shape) for tensor in spec.outputs] == [
        ("score", ("batch",)),
        ("embedding", ("batch", 4)),
        ("difference", ("batch", 4)),
    ]


def test_only_rows_of_floating_scores_carry_a_decision(read: Read, tmp_path: Path) -> None:
    outputs = export(read(Nested, (6,)), tmp_path).spec.outputs

    assert {tensor.name: (tensor.dtype, tensor.decision_axis) for tensor in outputs} == {
        "output_0_0": ("float32", 1),
        "output_0_1": ("int64", None),
        "output_1_mean": ("float32", None),
        "output_2_boxes": ("float32", 1),
        "output_2_scores": ("float32", 1),
    }


def test_program_on_disk_keeps_the_checkpoints_names_and_runs_one_row(read: Read, tmp_path: Path) -> None:
    program = export(read(ConvNet, IMAGE), tmp_path)

    names, rows = run_alone("load", parameters_and_rows, program).value

    assert "features.0.weight" in names
    assert rows == 1


def test_digest_tells_programs_apart_and_the_same_one_again(read: Read, tmp_path: Path) -> None:
    checkpoint = read(ConvNet, IMAGE)

    four, again, eight = (export(checkpoint, tmp_path, max_batch=size).digest for size in (4, 4, 8))

    assert four == again
    assert four != eight


@pytest.mark.parametrize(
    ("factory", "error", "words"),
    [
        (
            ConstantBatch,
            UnfinishedError,
            [r"batch dimension a constant by torch's aten\.reshape\.default \(in .*models\.py:\d+, forward", "reshape"],
        ),
        (DataDependent, UnfinishedError, [r"in .*models\.py:\d+, forward: if x\.sum\(\) > 0:", "data-dependent"]),
        (WrongSize, UnfinishedError, [r"batch of inputs of shape \[2, 6\]", r"in .*models\.py:\d+, forward"]),
        (OverTheBatch, UsageError, [r"output 'output' has the shape \[4\]", "the batch first", "--max-batch 1"]),
        (TwiceTheBatch, UsageError, [r"output 'output' has a size .*: 2\*batch"]),
        (LoneNumber, UsageError, ["loss is a single number"]),
        (NotATensor, UsageError, ["output_1 is a int"]),
    ],
)
def test_model_that_cannot_be_batched_is_explained(
    read: Read, tmp_path: Path, factory: Callable[[], nn.Module], error: type[Exception], words: list[str]
) -> None:
    checkpoint = read(factory, (6,))

    with pytest.raises(error) as caught:
        export(checkpoint, tmp_path)

    for pattern in words:
        assert re.search(pattern, str(caught.value)), str(caught.value)
    assert not (tmp_path / "program.pt2").exists()


def test_output_over_the_batch_is_allowed_without_one(read: Read, tmp_path: Path) -> None:
    spec = export(read(OverTheBatch, (6,)), tmp_path, max_batch=1).spec

    assert spec.outputs[0].shape == (4,)


def test_batch_below_1_is_wrong_use(read: Read, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="largest batch is 0") as caught:
        export(read(ConvNet, IMAGE), tmp_path, max_batch=0)

    assert caught.value.exit_code is ExitCode.USAGE


def test_seeded_inputs_are_the_same_each_time_and_fit_their_dtype() -> None:
    wanted = (
        TensorSpec(name="x", dtype="float16", shape=("batch", 3)),
        TensorSpec(name="ids", dtype="int64", shape=("batch", 7)),
        TensorSpec(name="mask", dtype="bool", shape=("batch",)),
    )

    first, second = (seeded_inputs(wanted, batch=2) for _ in range(2))

    assert [(str(tensor.dtype), tuple(tensor.shape)) for tensor in first] == [
        ("torch.float16", (2, 3)),
        ("torch.int64", (2, 7)),
        ("torch.bool", (2,)),
    ]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_gpu_is_shown_as_many_rows_as_are_served_at_once() -> None:
    batches = [(), *((Dim(name="batch", minimum=1, maximum=largest),) for largest in (2, 8, 256))]
    assert [sample_rows(dims, "cuda") for dims in batches] == [2, 2, 8, 32]
    assert {sample_rows(dims, "cpu") for dims in batches} == {2}


def test_a_network_for_texts_of_one_length_is_told_the_way() -> None:
    error = ValueError("Constraints violated (sequence)! For more information, run with TORCH_LOGS.")
    dims = (Dim(name="batch", minimum=1, maximum=4), Dim(name="sequence", minimum=1, maximum=24))
    told = explain_export_error(error, lambda: None, lambda: None, dims=dims, folder=True)
    assert "--dynamic input_ids:1=24..24" in told.fix
    assert "input_ids" not in str(explain_export_error(error, lambda: None, lambda: None, dims=dims[:1], folder=True))


def test_a_second_look_for_further_places_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class GuardOnDataDependentSymNode(Exception):  # noqa: N818 - torch's own name for it
        pass

    monkeypatch.setattr("deploy.convert.explain._DRAFT_SECONDS", 0.1)
    started = time.monotonic()
    told = explain_export_error(GuardOnDataDependentSymNode("u0 > 1"), lambda: None, lambda: time.sleep(20), dims=())
    assert time.monotonic() - started < 10
    assert "u0 > 1" in told.found
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
