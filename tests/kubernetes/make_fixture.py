"""How tests/kubernetes/repositories came to be; kept for when the manifest's schema must change.

Run as a script: `python -m tests.kubernetes.make_fixture`. The measurements are those of one packaging of the demo.
"""

import shutil
from dataclasses import replace

import digits

from deploy.convert.model import Artifact
from deploy.evidence import Judgement, ServedEvidence, Verdict
from deploy.latency_evidence import LatencyCell, LatencyEvidence, Quantile
from deploy.report.findings import LATENCY_FILE, SERVED_FILE
from deploy.repository.config import build_config
from deploy.repository.publish import PublishOptions, publish
from deploy.repository.stage import open_stage
from deploy.targets import find_target
from tests.containers.make_fixture import ELSEWHERE, SPEC
from tests.kubernetes.example import EXAMPLES, NAME, REPOSITORIES
from tests.repository.samples import Sample

READY_SECONDS, PEAK_MEMORY, P50 = 0.82, 256_999_424, 2.21
TARGETS = {"cpu": "26.08-cpu", "gpu": "26.08-cuda-sm90"}
PASS = Judgement(verdict=Verdict.PASS, reason="within the budget")
SERVED = ServedEvidence(
    judgement=PASS,
    mode="served (adapted)",
    engine="tritonserver 2.51.0 (local)",
    release="24.10",
    backend="onnxruntime (python-based, onnxruntime 1.32.0)",
    config_difference=(),
    checks=(),
    executions=10,
    inferences=64,
    ready_seconds=READY_SECONDS,
    peak_memory=PEAK_MEMORY,
)
LATENCY = LatencyEvidence(
    judgement=PASS,
    device="cpu: a machine of the tests",
    threads=2,
    method="as deployctl package measures it",
    confidence=0.95,
    cells=(
        LatencyCell(
            contender="onnx", batch=1, n=400, p50=Quantile(value=P50, low=P50, high=P50), p90=None, p95=None, p99=None
        ),
    ),
    ratios=(),
    starts=(),
    winner="onnx",
    winner_rule="the only one",
)


def make(example: str) -> None:
    """Publish the version where its fixture lies, in place of what lies there. On a GPU nothing was measured."""
    repository, target = REPOSITORIES / example, find_target(TARGETS[example])
    shutil.rmtree(repository, ignore_errors=True)
    sample = Sample(name=NAME, spec=SPEC, classes=digits.CLASSES)
    with open_stage(repository, NAME, keep_failed=None, on_step=lambda _: None) as stage:
        (stage.work / "model.onnx").write_bytes(b"weights")
        stage.add_artifact(
            Artifact(format="onnx", folder=stage.work, files=("model.onnx",), seconds=1.0, peak_memory=1, details={})
        )
        plan = replace(sample.plan(), target=target)
        stage.add_config(build_config(plan), classes=digits.CLASSES)
        stage.add_warmup(plan.warmup)
        stage.add_evidence("parity.json", b"{}\n")
        if example == "cpu":
            stage.add_evidence(SERVED_FILE, SERVED.to_json().encode())
            stage.add_evidence(LATENCY_FILE, LATENCY.to_json().encode())
        manifest = sample.manifest().model_copy(
            update={
                "environment": ELSEWHERE,
                "created": "2026-01-01T00:00:00Z",
                "artifact": {"opset": "20", "ir_version": "10"},
                "target": target,
            }
        )
        publish(stage, manifest, PublishOptions())


if __name__ == "__main__":
    for one in EXAMPLES:
        make(one)
