"""Served parity passes clean versions of both formats, and catches what is served wrong."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.evidence import ServedEvidence, Verdict
from deploy.repository.protobuf import format_config, parse_config
from deploy.serve.engines import Engine
from deploy.serve.local import served_view
from deploy.serve.parity import ServedQuestion, ask_server, check_served
from deploy.serve.server import TritonServer
from tests.repository.samples import CLASSES, Sample, classifier
from tests.serve.conftest import Served
from tests.serve.tiny import Linear, publish

pytestmark = pytest.mark.engine

ALL_CHECKS = {
    "one request at a time",
    "concurrent requests",
    "concurrent requests of several rows",
    "classification labels",
}


def failed(evidence: ServedEvidence) -> set[str]:
    return {check.name for check in evidence.checks if check.judgement.verdict is Verdict.FAIL}


@pytest.mark.parametrize(
    ("format", "backend", "difference"),
    [("onnx", "onnxruntime (python-based, onnxruntime ", 2), ("aoti", "pytorch (python-based, torch ", 3)],
)
def test_a_clean_version_passes_every_way_of_asking(served: Served, format: str, backend: str, difference: int) -> None:
    question = replace(Linear().question(), format="aoti" if format == "aoti" else "onnx")
    evidence = ask_server(served.server, getattr(served, format), question)
    assert evidence.judgement.passed, evidence.judgement.reason
    assert {(check.name, check.protocol) for check in evidence.checks} == {
        (name, protocol) for name in ALL_CHECKS for protocol in ("grpc", "http")
    }
    assert 0 < evidence.executions < evidence.inferences, "the server's own counters show merged requests"
    assert (evidence.mode, evidence.release) == ("served (adapted)", "24.10")
    assert evidence.engine == "tritonserver 2.51.0 (local)"
    assert evidence.backend.startswith(backend)
    assert len(evidence.config_difference) == difference


def test_other_weights_than_the_proven_ones_are_caught(engine: Engine, tmp_path: Path) -> None:
    version = publish(tmp_path / "models", Linear(seed=1).onnx(), Sample())
    evidence = check_served(version, engine, Linear().question())
    assert evidence.judgement.verdict is Verdict.FAIL
    assert failed(evidence) >= ALL_CHECKS - {"classification labels"}
    assert "output 'scores' is off by" in evidence.judgement.reason


def test_shifted_labels_are_caught_by_the_classification_extension(engine: Engine, tmp_path: Path) -> None:
    shifted = (CLASSES[-1], *CLASSES[:-1])
    version = publish(tmp_path / "models", Linear().onnx(), Sample(classes=shifted))
    evidence = check_served(version, engine, Linear().question())
    assert failed(evidence) == {"classification labels"}
    assert "the checkpoint says" in evidence.judgement.reason


def test_a_label_that_is_missing_is_caught(engine: Engine, tmp_path: Path) -> None:
    version = publish(tmp_path / "models", Linear().onnx(), Sample())
    (version.folder / "labels.txt").write_text("cat\ndog\n")
    evidence = check_served(version, engine, Linear().question(), staged=True)
    assert failed(evidence) == {"classification labels"}


def test_a_model_that_refuses_requests_fails(engine: Engine, tmp_path: Path) -> None:
    """The config promises a batch of 8, and the graph takes one row."""
    version = publish(tmp_path / "models", Linear().onnx(classifier(max_batch=1)), Sample())
    evidence = check_served(version, engine, Linear().question())
    assert evidence.judgement.verdict is Verdict.FAIL
    assert "gave no answer" in evidence.judgement.reason


def test_a_static_version_is_asked_row_by_row_and_merges_nothing(engine: Engine, tmp_path: Path) -> None:
    spec = classifier(max_batch=1)
    version = publish(tmp_path / "models", Linear().onnx(spec), Sample(spec=spec, classes=None))
    question = ServedQuestion(baseline=Linear().baseline(spec), format="onnx")
    evidence = check_served(version, engine, question)
    assert evidence.judgement.passed, evidence.judgement.reason
    assert {check.name for check in evidence.checks} == {"one request at a time", "concurrent requests"}
    assert evidence.executions == evidence.inferences


def test_answers_that_go_to_the_wrong_request_are_caught(served: Served) -> None:
    """The rows of each family, given back in another order, are wrong however small the model's own error is."""
    baseline = Linear().baseline()
    rows = {
        family: replace(row_set, reference=tuple(array[::-1].copy() for array in row_set.reference))
        for family, row_set in baseline.rows.items()
    }
    question = ServedQuestion(baseline=replace(baseline, rows=rows), format="onnx", classes=CLASSES)
    evidence = ask_server(served.server, served.onnx, question)
    assert failed(evidence) >= {"concurrent requests", "concurrent requests of several rows"}


def test_without_a_merged_request_a_pass_is_undecided(engine: Engine, tmp_path: Path) -> None:
    """A config that promises merging, served by a server whose batcher was taken away."""
    version = publish(tmp_path / "models", Linear().onnx(), Sample())
    view = served_view(tmp_path / "view", [version], engine)
    config = view / "pets" / "config.pbtxt"
    adapted = parse_config(config.read_text())
    adapted.ClearField("dynamic_batching")
    config.write_text(format_config(adapted))
    with TritonServer(view, engine=engine) as server:
        evidence = ask_server(server, version, Linear().question())
    assert evidence.judgement.verdict is Verdict.UNDECIDED
    assert "merged none of" in evidence.judgement.reason
    assert all(check.judgement.passed for check in evidence.checks)
