"""Small real versions for the tests of this room: tiny files under the real names, real configs and manifests."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.checkpoint.model import Checkpoint, Preprocessing
from deploy.convert.model import ARTIFACT_FILES, Artifact, Format
from deploy.evidence import Judgement, Verdict
from deploy.repository.config import ConfigPlan, build_config, warmup_tensors
from deploy.repository.manifest import (
    CheckpointOrigin,
    Environment,
    Manifest,
    Verdicts,
    created_now,
    verify_files,
    wire_names,
)
from deploy.repository.publish import PublishedVersion, PublishOptions, publish
from deploy.repository.stage import Stage, open_stage
from deploy.spec import BATCH, Dim, Spec, TensorSpec
from deploy.targets import find_target

CLASSES = ("cat", "dog", "eel")
# The head of an ONNX model, which is all that is read without loading: IR version 10, a producer, opset 20.
WEIGHTS = b"\x08\x0a" + b"\x12\x07weights" + b"\x42\x02\x10\x14"
PASS = Judgement(verdict=Verdict.PASS, reason="within the budget")
FAIL = Judgement(verdict=Verdict.FAIL, reason="output scores is off by 3")
UNDECIDED = Judgement(verdict=Verdict.UNDECIDED, reason="inferred, behaviour unconfirmed")


def classifier(*, max_batch: int = 8, side: int = 4, dtype: str = "float32") -> Spec:
    """An image classifier of three classes; static where `max_batch` is 1."""
    dynamic = max_batch > 1
    batch: int | str = BATCH if dynamic else 1
    return Spec(
        inputs=(TensorSpec(name="image", dtype=dtype, shape=(batch, 3, side, side)),),
        outputs=(TensorSpec(name="scores", dtype=dtype, shape=(batch, 3), decision_axis=1),),
        dims=(Dim(name=BATCH, minimum=1, maximum=max_batch),) if dynamic else (),
    )


SPEC = classifier()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a test version is made of; the defaults pass every check."""

    name: str = "pets"
    format: Format = "onnx"
    spec: Spec = SPEC
    classes: tuple[str, ...] | None = CLASSES
    weights: bytes = WEIGHTS
    parity: Judgement = PASS
    unsafe_accepted: tuple[str, ...] = ()

    def plan(self, version: int = 1) -> ConfigPlan:
        """The plan of its config, for the default target."""
        row = [np.ones(tensor.concrete(batch=1), tensor.dtype) for tensor in self.spec.inputs]
        return ConfigPlan(
            name=self.name,
            version=version,
            format=self.format,
            spec=self.spec,
            target=find_target("local-cpu"),
            threads=2,
            classes=self.classes,
            warmup=warmup_tensors(self.spec, row),
        )

    def manifest(self) -> Manifest:
        """Its manifest, but for what publishing adds."""
        checkpoint = Checkpoint(
            path=Path("/somewhere/private/pets.pt"),
            digest="0" * 64,
            format="torch",
            name=self.name,
            architecture="torchvision/resnet18",
            how="inferred",
            options={"num_classes": 3},
            inputs=self.spec.inputs,
            dtype="float32",
            parameters=11,
            size=44,
            classes=self.classes,
            num_classes=3,
            preprocessing=Preprocessing(source="unknown"),
            found_under="model_state_dict",
            weights=None,
            removed_prefixes=("module.",),
            trust_pickle=False,
        )
        return Manifest(
            name=self.name,
            version=1,
            format=self.format,
            created=created_now(),
            command=("deployctl", "package", "pets.pt"),
            spec=self.spec,
            wire=wire_names(self.spec),
            classes=self.classes,
            preprocessing=checkpoint.preprocessing,
            checkpoint=CheckpointOrigin.of(checkpoint),
            artifact={"opset": "20", "ir_version": "10"},
            target=find_target("local-cpu"),
            environment=Environment.here(),
            verdicts=Verdicts(parity=self.parity, architecture=UNDECIDED, served=PASS),
            served_check="done",
            unsafe_accepted=self.unsafe_accepted,
        )

    def populate(self, stage: Stage) -> None:
        """Put everything but the manifest into a stage."""
        file = ARTIFACT_FILES[self.format]
        (stage.work / file).write_bytes(self.weights)
        artifact = Artifact(
            format=self.format, folder=stage.work, files=(file,), seconds=1.0, peak_memory=1, details={}
        )
        stage.add_artifact(artifact)
        plan = self.plan(stage.version.number)
        stage.add_config(build_config(plan), classes=self.classes)
        stage.add_warmup(plan.warmup)
        stage.add_evidence("parity.json", b"{}\n")


PETS = Sample()
NO_OPTIONS = PublishOptions()


def put(
    repository: Path,
    sample: Sample = PETS,
    *,
    options: PublishOptions = NO_OPTIONS,
    on_step: Callable[[str], None] = lambda _: None,
    keep_failed: Path | None = None,
) -> PublishedVersion:
    """Stage and publish a sample, as package does."""
    with open_stage(repository, sample.name, keep_failed=keep_failed, on_step=on_step) as stage:
        sample.populate(stage)
        return publish(stage, sample.manifest(), options)


def state(model: Path) -> dict[str, str]:
    """What a reader of a model sees: the promoted config's text, and each version's digest after checking its files."""
    if not model.exists():
        return {}
    found = {"config": (model / "config.pbtxt").read_text()}
    for folder in model.iterdir():
        if folder.name.isdigit():
            manifest = verify_files(folder)
            assert (manifest.name, str(manifest.version)) == (model.name, folder.name)
            found[folder.name] = (folder / "manifest.json").read_text()
    return found


def leftovers(repository: Path) -> list[str]:
    """What lies beside the repository and should not."""
    return sorted(path.name for path in repository.parent.iterdir() if path != repository)
