"""Each rule of the linter fires on a config that breaks it, and on nothing that we or NVIDIA would write."""

from pathlib import Path

import pytest

from deploy.errors import UnfinishedError
from deploy.repository.config import build_config
from deploy.repository.lint import lint, require_clean
from deploy.repository.protobuf import format_config, parse_config
from tests.repository.samples import Sample, put

BARE = """
name: "m" backend: "onnxruntime" max_batch_size: 8
input [ { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""
AOTI = BARE.replace("onnxruntime", "pytorch") + 'platform: "torch_aoti" default_model_filename: "model.pt2" '
SEQUENCE = BARE + "sequence_batching { %s }"
CONTROL = 'control_input [ { name: "C" control [ { kind: %s } ] } ]'
ENSEMBLE = """
name: "e" platform: "ensemble" max_batch_size: 8
input [ { name: "IN" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""
STEP = 'ensemble_scheduling { step [ { model_name: "m" %s } ] }'
MAPS = 'input_map { key: "INPUT__0" value: "IN" } output_map { key: "OUTPUT__0" value: "OUT" }'
WARMUP = 'model_warmup [ { name: "w" batch_size: %s inputs { key: "%s" value { data_type: %s dims: [ %s ] } } } ]'

# NVIDIA's own examples and our own configs: nothing to find.
GOOD = {
    "bare": BARE,
    "aoti by ordinal": AOTI,
    "aoti by place in the call": AOTI.replace("INPUT__0", "ARGS[0]").replace("OUTPUT__0", "RESULT"),
    "aoti by nested place": AOTI.replace("INPUT__0", "ARGS[2][key]").replace("OUTPUT__0", "RESULT[a][0]"),
    "dynamic batching without a batch": BARE.replace("8", "0") + "dynamic_batching { }",
    "onnx platform said": BARE + 'platform: "onnxruntime_onnx"',
    "unknown backend": BARE.replace("onnxruntime", "mine") + 'platform: "anything"',
    "sequence": SEQUENCE % (CONTROL % "CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ]"),
    "ensemble": ENSEMBLE + STEP % MAPS,
    "reshape round an unknown size": BARE.replace(
        "dims: [ 3 ]", "dims: [ 2, -1, 4 ] reshape { shape: [ 2, -1, 2, 2 ] }"
    ),
    "warm-up": BARE + WARMUP % (8, "INPUT__0", "TYPE_FP32", 3),
    "histogram": BARE
    + 'model_metrics { metric_control [ { metric_identifier { family: "f" } histogram_options { buckets: [ 1 ] } } ] }',
}

BAD = [
    ("syntax", 'name: "m" default_model_name: "model.pt2"'),
    ("name", BARE.replace('name: "m"', "")),
    ("backend", BARE.replace('backend: "onnxruntime"', "")),
    ("backend", ENSEMBLE + 'backend: "python"' + STEP % MAPS),
    ("platform", BARE + 'platform: "tensorrt_plan"'),
    ("platform", AOTI.replace("torch_aoti", "onnxruntime_onnx")),
    ("max-batch-size", BARE.replace("8", "-1")),
    ("version", BARE + "version_policy { specific { versions: [ 0 ] } }"),
    ("tensor-name", BARE.replace('name: "INPUT__0"', "")),
    ("data-type", BARE.replace("data_type: TYPE_FP32 dims: [ 3 ]", "dims: [ 3 ]")),
    ("dims", BARE.replace("dims: [ 3 ]", "")),
    ("dims", BARE.replace("dims: [ 3 ]", "dims: [ 0 ]")),
    ("dims", BARE.replace("dims: [ 2 ]", "dims: [ -2 ]")),
    ("format", BARE.replace("dims: [ 3 ]", "dims: [ 3 ] format: FORMAT_NCHW")),
    ("tensor-kind", BARE.replace("dims: [ 3 ]", "dims: [ 3 ] is_shape_tensor: true")),
    ("tensor-kind", BARE.replace("dims: [ 2 ]", "dims: [ 2 ] is_non_linear_format_io: true")),
    ("reshape", BARE.replace("dims: [ 3 ]", "dims: [ 3 ] reshape { shape: [ 2 ] }")),
    ("reshape", BARE.replace("8", "0").replace("dims: [ 3 ]", "dims: [ 1 ] reshape { shape: [ ] }")),
    ("reshape", BARE.replace("dims: [ 2 ]", "dims: [ 2, -1, 4 ] reshape { shape: [ 4, -1, 2 ] }")),
    ("preferred-batch-size", BARE + "dynamic_batching { preferred_batch_size: [ 16 ] }"),
    ("preferred-batch-size", BARE + "dynamic_batching { preferred_batch_size: [ 0 ] }"),
    ("priority", BARE + "dynamic_batching { priority_levels: 2 default_priority_level: 3 }"),
    ("priority", BARE + "dynamic_batching { priority_levels: 2 }"),
    (
        "priority",
        BARE + "dynamic_batching { priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 } }",
    ),
    (
        "preserve-ordering",
        BARE + "dynamic_batching { preserve_ordering: true priority_levels: 2 default_priority_level: 1 }",
    ),
    (
        "preserve-ordering",
        BARE + "dynamic_batching { preserve_ordering: true default_queue_policy { timeout_action: DELAY } }",
    ),
    ("response-cache", SEQUENCE % "" + "response_cache { enable: true }"),
    ("response-cache", BARE + "model_transaction_policy { decoupled: true } response_cache { enable: true }"),
    ("sequence", SEQUENCE % (CONTROL % "CONTROL_SEQUENCE_START")),
    ("sequence", SEQUENCE % (CONTROL % "CONTROL_SEQUENCE_END int32_false_true: [ 0 ]")),
    ("sequence", SEQUENCE % (CONTROL % "CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32")),
    (
        "sequence",
        SEQUENCE % (CONTROL % "CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64 int32_false_true: [ 0, 1 ]"),
    ),
    ("sequence", SEQUENCE % "control_input [ { control [ ] } ]"),
    ("sequence", SEQUENCE % (2 * (CONTROL % "CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ]"))),
    ("sequence", SEQUENCE % "direct { minimum_slot_utilization: 1.5 }"),
    (
        "sequence",
        SEQUENCE % "" + 'parameters { key: "TRITON_BATCH_STRATEGY_PATH" value { string_value: "x.so" } }',
    ),
    ("preferred-batch-size", SEQUENCE % "oldest { preferred_batch_size: [ 9 ] }"),
    ("batch-io", BARE + 'batch_input [ { target_name: "T" data_type: TYPE_FP32 } ]'),
    ("batch-io", BARE + 'batch_input [ { target_name: "T" data_type: TYPE_FP32 source_input: "X" } ]'),
    ("batch-io", BARE + 'batch_input [ { target_name: "T" data_type: TYPE_FP64 source_input: "INPUT__0" } ]'),
    ("batch-io", BARE + 'batch_output [ { target_name: "T" source_input: "INPUT__0" } ]'),
    ("ensemble", ENSEMBLE),
    ("ensemble", ENSEMBLE + STEP % MAPS + "instance_group [ { count: 1 } ]"),
    ("ensemble", ENSEMBLE + STEP % MAPS + "optimization { }"),
    ("ensemble", ENSEMBLE + STEP % MAPS + WARMUP % (1, "IN", "TYPE_FP32", 3)),
    ("ensemble", ENSEMBLE + STEP % 'output_map { key: "OUTPUT__0" value: "OUT" }'),
    ("ensemble", ENSEMBLE + STEP % 'input_map { key: "INPUT__0" value: "IN" }'),
    ("ensemble", ENSEMBLE + STEP % (MAPS + ' input_map { key: "B" value: "NOWHERE" }')),
    ("ensemble", ENSEMBLE + STEP % (MAPS + ' output_map { key: "B" value: "UNUSED" }')),
    ("instance-group", BARE + "instance_group [ { kind: KIND_CPU gpus: [ 0 ] } ]"),
    ("instance-group", BARE + "instance_group [ { kind: KIND_MODEL gpus: [ 0 ] } ]"),
    ("instance-group", BARE + 'instance_group [ { kind: KIND_GPU profile: "0" } ]'),
    ("instance-group", BARE + "instance_group [ { kind: KIND_CPU count: -1 } ]"),
    ("model-metrics", BARE + "model_metrics { metric_control [ { histogram_options { buckets: [ 1 ] } } ] }"),
    ("model-metrics", BARE + 'model_metrics { metric_control [ { metric_identifier { family: "f" } } ] }'),
    ("model-file", AOTI.replace('default_model_filename: "model.pt2"', "")),
    ("model-file", AOTI.replace("model.pt2", "model.pt")),
    ("torch-dtype", AOTI.replace("TYPE_FP32", "TYPE_BF16")),
    ("torch-dtype", AOTI.replace("TYPE_FP32", "TYPE_STRING")),
    ("torch-dtype", AOTI.replace("TYPE_FP32", "TYPE_UINT64")),
    ("aoti-name", AOTI.replace("INPUT__0", "image")),
    ("aoti-name", AOTI.replace("OUTPUT__0", "scores")),
    ("aoti-name", AOTI.replace("INPUT__0", "KWARGS[image]")),
    ("aoti-name", AOTI.replace("INPUT__0", "INPUT__1")),
    ("aoti-name", AOTI[: AOTI.index("output [")] + AOTI[AOTI.index("platform") :]),
    ("onnx-optional", BARE.replace("dims: [ 3 ]", "dims: [ 3 ] optional: true")),
    ("onnx-ragged", BARE.replace("dims: [ 3 ]", "dims: [ 3 ] allow_ragged_batch: true")),
    ("parameters", BARE + 'parameters { key: "intra_op_thread_count" value { string_value: "two" } }'),
    ("parameters", BARE + 'parameters { key: "execution_mode" value { string_value: "parallel" } }'),
    ("optimization", BARE + "optimization { graph { level: 3 } }"),
    (
        "optimization",
        BARE + 'optimization { execution_accelerators { cpu_execution_accelerator [ { name: "warp" } ] } }',
    ),
    ("warmup", BARE + WARMUP % (1, "INPUT__9", "TYPE_FP32", 3)),
    ("warmup", BARE + WARMUP % (1, "INPUT__0", "TYPE_INT32", 3)),
    ("warmup", BARE + WARMUP % (1, "INPUT__0", "TYPE_FP32", -1)),
    ("warmup", BARE + WARMUP % (1, "INPUT__0", "TYPE_FP32", 4)),
    ("warmup", BARE + WARMUP % (9, "INPUT__0", "TYPE_FP32", 3)),
    ("warmup", BARE + 'model_warmup [ { name: "w" batch_size: 1 } ]'),
]


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD.keys())
def test_nothing_is_found_in_a_good_config(text: str) -> None:
    assert lint(text) == ()


@pytest.mark.parametrize(("rule", "text"), BAD, ids=[f"{rule}-{number}" for number, (rule, _) in enumerate(BAD)])
def test_a_rule_fires_alone_on_what_breaks_it(rule: str, text: str) -> None:
    assert {finding.rule for finding in lint(text)} == {rule}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = put(tmp_path_factory.mktemp("lint") / "models").version.model_folder
    (model.parent / "outside.txt").write_text("labels of somebody else\n")
    return model


def test_a_published_model_has_no_finding(published: Path) -> None:
    assert lint((published / "config.pbtxt").read_text(), folder=published) == ()


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("name", 'name: "pets"', 'name: "cats"'),
        ("version-files", "versions: 1", "versions: 2"),
        ("version-files", '"model.onnx"', '"other.onnx"'),
        ("labels", "1/labels.txt", "1/names.txt"),
        ("labels", "1/labels.txt", "../outside.txt"),
        ("warmup-file", 'input_data_file: "', 'input_data_file: "0'),
        ("warmup-file", 'input_data_file: "', 'input_data_file: "../1/labels.txt" # '),
    ],
)
def test_the_files_that_a_config_names_must_be_there(published: Path, rule: str, old: str, new: str) -> None:
    text = (published / "config.pbtxt").read_text()
    assert old in text
    assert {finding.rule for finding in lint(text.replace(old, new), folder=published)} == {rule}


def test_a_sample_of_another_size_is_found(tmp_path: Path) -> None:
    model = put(tmp_path / "models").version.model_folder
    sample = next((model / "warmup").iterdir())
    sample.write_bytes(sample.read_bytes()[:-4])
    found = lint((model / "config.pbtxt").read_text(), folder=model)
    assert {(finding.rule, "188 bytes and not 192" in finding.message) for finding in found} == {("warmup-file", True)}


def test_the_error_lists_all_findings(published: Path) -> None:
    config = parse_config(build_config(Sample().plan()))
    config.max_batch_size = -1
    config.backend = ""
    with pytest.raises(UnfinishedError, match="no backend is named") as caught:
        require_clean(format_config(config), folder=published)
    assert "max_batch_size is -1" in str(caught.value)
