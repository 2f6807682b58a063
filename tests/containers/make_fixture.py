"""How tests/containers/repository came to be; kept so that it can be made again if the manifest's schema must change.

Run as a script: `python -m tests.containers.make_fixture`.
"""

import shutil

import digits

from deploy.repository.manifest import Environment
from deploy.repository.publish import PublishOptions, publish
from deploy.repository.stage import open_stage
from deploy.spec import BATCH, Dim, Spec, TensorSpec
from tests.containers.example import NAME, REPOSITORY
from tests.repository.samples import Sample

SPEC = Spec(
    inputs=(TensorSpec(name="image", dtype="float32", shape=(BATCH, 3, 64, 64)),),
    outputs=(TensorSpec(name="output", dtype="float32", shape=(BATCH, 10), decision_axis=1),),
    dims=(Dim(name=BATCH, minimum=1, maximum=8),),
)
ELSEWHERE = Environment(
    python="3.12.3",
    deployctl="0.1.0",
    torch="2.13.0",
    torchvision="0.28.0",
    onnx="1.22.0",
    onnxruntime="1.28.0",
    platform="Linux",
    cpu="a machine of the tests",
    cores=2,
)


def make() -> None:
    """Publish the version where the fixture lies, in place of what lies there."""
    shutil.rmtree(REPOSITORY, ignore_errors=True)
    sample = Sample(name=NAME, spec=SPEC, classes=digits.CLASSES)
    with open_stage(REPOSITORY, NAME, keep_failed=None, on_step=lambda _: None) as stage:
        sample.populate(stage)
        manifest = sample.manifest().model_copy(
            update={
                "environment": ELSEWHERE,
                "created": "2026-01-01T00:00:00Z",
                "artifact": {"opset": "20", "ir_version": "10"},
            }
        )
        publish(stage, manifest, PublishOptions())


if __name__ == "__main__":
    make()
