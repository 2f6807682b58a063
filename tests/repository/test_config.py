"""The config says what Triton needs for both formats, and refuses what it could not serve."""

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deploy.errors import UsageError
from deploy.repository.config import ConfigPlan, build_config, renumbered, warmup_tensors
from deploy.repository.histograms import LADDER_MS, LATENCY_HISTOGRAM, latency_buckets
from deploy.repository.lint import lint
from deploy.repository.protobuf import TRITON_TYPES, parse_config
from deploy.spec import BATCH, DTYPES, Dim, Spec, TensorSpec
from deploy.targets import AotiSupport, find_target
from tests.markdown import ROOT
from tests.repository.samples import Sample, classifier


def built(plan: ConfigPlan) -> Any:
    text = build_config(plan)
    assert lint(text) == ()
    return parse_config(text)


def one_output(shape: tuple[int | str, ...]) -> Spec:
    return Spec(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(BATCH, 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=shape),),
        dims=(Dim(name=BATCH, minimum=1, maximum=8),),
    )


def plain(spec: Spec, **changes: Any) -> ConfigPlan:
    return replace(Sample(classes=None).plan(), spec=spec, warmup=(), **changes)


def test_onnx_config_in_full() -> None:
    config = built(Sample().plan(version=3))
    assert (config.name, config.backend, config.platform) == ("pets", "onnxruntime", "")
    assert config.default_model_filename == "model.onnx"
    assert list(config.version_policy.specific.versions) == [3]
    assert config.max_batch_size == 8
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert [(t.name, list(t.dims)) for t in config.input] == [("INPUT__0", [3, 4, 4])]
    assert [(t.name, list(t.dims), t.label_filename) for t in config.output] == [("OUTPUT__0", [3], "3/labels.txt")]
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, 2)]
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "intra_op_thread_count": "2",
        "inter_op_thread_count": "1",
    }


def test_the_options_of_a_session_stand_where_triton_reads_them() -> None:
    options = {"optimization.graph.level": "1", "enable_mem_arena": "0", "intra_op_thread_count": "1"}
    config = built(replace(Sample().plan(), options=options))
    assert config.optimization.graph.level == 1
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "intra_op_thread_count": "1",
        "inter_op_thread_count": "1",
        "enable_mem_arena": "0",
    }
    assert not built(Sample().plan()).HasField("optimization")


def test_the_options_of_a_provider_stand_in_its_accelerator() -> None:
    options = {"cuda.prefer_nhwc": "1", "tensorrt.precision_mode": "FP16", "enable_mem_arena": "0"}
    plan = replace(Sample().plan(), target=find_target("26.08-cuda-sm90"), options=options)
    config = built(plan)
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [(entry.name, dict(entry.parameters)) for entry in accelerators] == [
        ("tensorrt", {"precision_mode": "FP16"}),
        ("cuda", {"use_tf32": "0", "prefer_nhwc": "1"}),
    ]
    assert set(config.parameters) == {"intra_op_thread_count", "inter_op_thread_count", "enable_mem_arena"}
    wrong = build_config(replace(plan, options={"tensorrt.precision_mode": "TF32"}))
    assert [finding.message for finding in lint(wrong)] == ["precision_mode is 'TF32', none of BF16, FP16, FP32, INT8"]


def test_aoti_config_names_its_platform_and_file() -> None:
    config = built(Sample(format="aoti").plan())
    assert (config.backend, config.platform) == ("pytorch", "torch_aoti")
    assert config.default_model_filename == "model.pt2"
    assert set(config.parameters) == {"INTRA_OP_THREAD_COUNT", "INTER_OP_THREAD_COUNT"}


def test_static_program_keeps_its_batch_in_the_dims() -> None:
    config = built(Sample(spec=classifier(max_batch=1)).plan())
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [1, 3, 4, 4]
    assert [list(warmup.inputs["INPUT__0"].dims) for warmup in config.model_warmup] == [[1, 3, 4, 4]]


def test_a_release_that_does_not_batch_aoti_gets_the_batch_as_an_unknown_size() -> None:
    old = find_target("26.06-cpu").model_copy(update={"aoti": AotiSupport(loads=True, batches=False)})
    config = built(replace(Sample(format="aoti").plan(), target=old))
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [-1, 3, 4, 4])
    assert built(replace(Sample().plan(), target=old)).max_batch_size == 8


@pytest.mark.parametrize("shape", [(4,), (3, BATCH), (BATCH, BATCH)], ids=["no batch", "batch second", "batch twice"])
def test_a_program_whose_rows_cannot_be_merged_is_not_batched(shape: tuple[int | str, ...]) -> None:
    assert built(plain(one_output(shape))).max_batch_size == 0


def test_one_number_per_row_is_reshaped_since_triton_wants_a_dimension() -> None:
    output = built(plain(one_output((BATCH,)))).output[0]
    assert list(output.dims) == [1]
    assert output.HasField("reshape")
    assert list(output.reshape.shape) == []


def test_the_warm_up_of_one_number_per_row_has_its_dimension_too() -> None:
    number = TensorSpec(name="scale", dtype="float32", shape=(BATCH,))
    spec = one_output((BATCH, 2)).model_copy(update={"inputs": (number,)})
    config = built(Sample(spec=spec, classes=None).plan())
    assert list(config.input[0].dims) == list(config.model_warmup[0].inputs["INPUT__0"].dims) == [1]


def test_a_scalar_output_is_refused() -> None:
    with pytest.raises(UsageError, match="'y' is a scalar"):
        build_config(plain(one_output(())))


def test_warm_up_is_a_real_row_alone_and_in_a_full_batch() -> None:
    plan = Sample().plan()
    config = built(plan)
    assert [(warmup.batch_size, warmup.count) for warmup in config.model_warmup] == [(1, 1), (8, 1)]
    entry = config.model_warmup[0].inputs["INPUT__0"]
    assert (list(entry.dims), entry.input_data_file) == ([3, 4, 4], plan.warmup[0].digest)
    assert plan.warmup[0].data == np.ones((3, 4, 4), np.float32).tobytes()


@pytest.mark.parametrize(("largest", "sizes"), [(8, [*range(1, 9)]), (64, [*range(1, 33), 64])])
def test_on_a_gpu_every_batch_size_is_warm(largest: int, sizes: list[int]) -> None:
    plan = replace(Sample(spec=classifier(max_batch=largest)).plan(), target=find_target("26.08-cuda-sm90"))
    assert [warmup.batch_size for warmup in built(plan).model_warmup] == sizes


def test_a_warm_up_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"input 'image' is float32 \[1, 3, 5, 5\]"):
        warmup_tensors(classifier(), [np.ones((1, 3, 5, 5), np.float32)])


def test_every_dtype_has_its_triton_word() -> None:
    assert set(TRITON_TYPES) == set(DTYPES)


def test_target_without_aoti_is_refused_naming_those_with() -> None:
    plan = replace(Sample(format="aoti").plan(), target=find_target("24.10-cpu"))
    with pytest.raises(UsageError, match=r"24\.10-cpu cannot load") as caught:
        build_config(plan)
    assert "local-cpu, 26.03-cpu, 26.04-cpu" in caught.value.expected


@pytest.mark.parametrize(("format_", "target"), [("aoti", "26.08-cpu"), ("onnx", "24.10-cpu")])
def test_bfloat16_is_refused_where_it_cannot_travel(format_: Any, target: str) -> None:
    plan = plain(classifier(dtype="bfloat16"), format=format_, target=find_target(target))
    with pytest.raises(UsageError, match="'image' is bfloat16"):
        build_config(plan)


def test_bfloat16_travels_through_a_new_onnx_backend() -> None:
    spec = classifier(dtype="bfloat16")
    assert built(plain(spec, target=find_target("26.08-cpu"))).input[0].data_type == 14


def test_on_a_gpu_there_is_one_instance_in_full_precision() -> None:
    config = built(replace(Sample().plan(), target=find_target("26.08-cuda-sm90")))
    assert [(group.count, group.kind, list(group.gpus)) for group in config.instance_group] == [(1, 1, [0])]
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [(entry.name, dict(entry.parameters)) for entry in accelerators] == [("cuda", {"use_tf32": "0"})]
    assert not built(Sample().plan()).HasField("optimization")


@pytest.mark.parametrize(("target", "heeded"), [("26.03-cpu", False), ("26.05-cpu", False), ("26.06-cpu", True)])
def test_parameters_that_a_release_reads_wrongly_are_left_out(target: str, heeded: bool) -> None:
    aoti = built(replace(Sample(format="aoti").plan(), target=find_target(target)))
    assert set(aoti.parameters) == ({"INTRA_OP_THREAD_COUNT", "INTER_OP_THREAD_COUNT"} if heeded else set())
    assert (aoti.max_batch_size > 0) is heeded
    assert len(built(replace(Sample().plan(), target=find_target(target))).parameters) == 2


def buckets(config: Any) -> dict[str, list[float]]:
    return {
        control.metric_identifier.family: list(control.histogram_options.buckets)
        for control in config.model_metrics.metric_control
    }


def test_the_latency_histogram_is_finest_round_the_bound() -> None:
    plan = replace(Sample().plan(), target=find_target("26.08-cpu"))
    around = buckets(built(replace(plan, slo_p99_ms=15.0)))[LATENCY_HISTOGRAM]
    assert around == sorted(set(around))
    assert {13.5, 15.0, 16.5} <= set(around)
    assert buckets(built(plan)) == {LATENCY_HISTOGRAM: list(LADDER_MS)}


@pytest.mark.parametrize("bound", [0.003, 0.7, 33.3, 1e6])
def test_any_bound_gives_buckets_that_ascend_with_itself_among_them(bound: float) -> None:
    found = latency_buckets(bound)
    assert list(found) == sorted(set(found))
    assert bound in found
    assert found[0] > 0


@pytest.mark.parametrize("target", ["local-cpu", "24.10-cpu", "26.01-cpu"])
def test_a_release_that_is_not_known_to_have_the_histogram_gets_no_buckets(target: str) -> None:
    assert not built(replace(Sample().plan(), target=find_target(target), slo_p99_ms=15.0)).HasField("model_metrics")


def test_labels_that_no_output_decides_between_are_refused() -> None:
    with pytest.raises(UsageError, match="there are 2 labels"):
        build_config(replace(Sample().plan(), classes=("cat", "dog")))


def test_renumbering_changes_the_policy_and_the_labels_only() -> None:
    plan = Sample().plan(version=1)
    assert renumbered(build_config(plan), 7) == build_config(replace(plan, version=7))


def test_the_text_is_the_same_in_every_process() -> None:
    """A digest stands on it, and the parameters are a map, whose order could follow from the hash of its keys."""
    program = (
        "from tests.repository.samples import Sample\n"
        "from deploy.repository.config import build_config\n"
        "print(build_config(Sample(format='aoti').plan()), end='')"
    )
    wanted = build_config(Sample(format="aoti").plan())
    assert wanted.count("parameters {") > 1
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == wanted
