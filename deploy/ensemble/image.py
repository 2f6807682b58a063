"""What lies round a network that sees: JPEG or PNG bytes become its pixels, its outputs labels and scores.

Owns the plan for images and how the first step is proven; `whole` stages, serves and publishes. Called by package.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.checkpoint.model import Checkpoint
from deploy.ensemble.configs import Tensor
from deploy.ensemble.images import damaged_images, read_images, seeded_images
from deploy.ensemble.inputs import NamedInput
from deploy.ensemble.proof import IMAGE, EnsembleQuestion, judge_transform, make_question
from deploy.ensemble.reference import trained_answers
from deploy.ensemble.transform import TRANSFORM_FILE, ImageTransform, image_transform
from deploy.ensemble.whole import (
    BEST,
    Design,
    Proven,
    PythonStep,
    deciding,
    instances,
    label_names,
    max_batch,
    scores_step,
)
from deploy.errors import UsageError
from deploy.processes import Worker
from deploy.versions import StagedVersion, VersionPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """What was settled before any work: the transform of training, and the whole images that the proof is made with."""

    transform: ImageTransform
    images: tuple[NamedInput, ...]
    kind: Literal["image"] = "image"
    evidence: str = "transform.json"

    def prove(self, network: StagedVersion, plan: VersionPlan) -> Proven:
        """The design, the transform compared with training's own. Raises UsageError if the network decides nothing."""
        output = deciding(plan.spec, self.kind)
        log = network.stage.work / "logs" / "reference-of-the-ensemble.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with Worker("the reference of the ensemble", log=log) as worker:
            data = [image.data for image in self.images]
            answers = worker.run(
                trained_answers, plan.checkpoint, data, self.transform, output=output, threads=plan.threads
            ).value
        classes = answers.reference.shape[1]
        question = EnsembleQuestion(
            names=(),
            damaged=0,
            labels=label_names(plan.classes, classes),
            count=min(BEST, classes),
            allowed=0.0,
            max_batch=max_batch(network),
        )
        return Proven(
            design=self._design(plan, output),
            judgement=judge_transform(self.images, self.transform, answers),
            # Half of a seeded one: half of a photograph may hold it whole, with a film or a second one behind it.
            asked=make_question(self.images, damaged_images(self.images[-1].data), answers, question),
        )

    def _design(self, plan: VersionPlan, output: int) -> Design:
        from deploy.ensemble.models import image

        pixels = plan.spec.inputs[0]
        before = PythonStep(
            inputs=(Tensor(wire=IMAGE, dtype="string", dims=(1,)),),
            outputs=(Tensor(wire="PIXELS", dtype=pixels.dtype, dims=pixels.shape[1:]),),
            source=Path(image.__file__),
            files={TRANSFORM_FILE: self.transform.to_json().encode()},
            instances=instances(plan),
            needs=("numpy", "pillow"),
        )
        after = scores_step(plan.spec.outputs[output], plan.classes)
        return Design(before=before, after=after, output=output, outputs=after.outputs)


def plan_images(checkpoint: Checkpoint, folder: Path | None, *, exif_orientation: bool) -> ImagePlan:
    """The plan for a checkpoint, with the folder's images and the seeded ones.

    Raises UsageError if a part of training's transform is not known, or the folder holds no image, or one that the
    first step refuses.
    """
    transform = image_transform(checkpoint, exif_orientation=exif_orientation)
    own = read_images(folder) if folder else ()
    for image in own:
        _check_usable(image, transform)
    return ImagePlan(transform=transform, images=(*own, *seeded_images(transform)))


def _check_usable(image: NamedInput, transform: ImageTransform) -> None:
    from deploy.ensemble.models.image import BadImage, prepare

    try:
        prepare(image.data, transform.model_dump(mode="json"))
    except BadImage as error:
        raise UsageError(
            f"--images: {image.name}: {error}",
            expected="images as clients will send them",
            fix="leave it out: damaged ones are tried anyway",
        ) from error
