"""An ensemble round one proven version: JPEG or PNG bytes in, labels and scores out.

Owns its four models, their order, and how they come to be published. Called by package; `proof` judges.

    NAME_preprocess    Triton's python backend: decodes, resizes, crops, normalises as training did
    NAME               the proven version itself, by its number
    NAME_postprocess   Triton's python backend: softmax, the best labels and their scores
    NAME_image         the ensemble of these very versions

Each is one rename, the ensemble last: whoever sees it sees all that it runs.
"""

import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.checkpoint.model import Checkpoint
from deploy.ensemble.configs import MODEL_FILE, EnsembleStep, StepPlan, Tensor, ensemble_config, python_config
from deploy.ensemble.images import NamedImage, damaged_images, read_images, seeded_images
from deploy.ensemble.proof import Asked, EnsembleQuestion, judge_transform, labels_json, make_question
from deploy.ensemble.reference import trained_answers
from deploy.ensemble.served import check_ensemble
from deploy.ensemble.transform import PURPOSE, TRANSFORM_FILE, ImageTransform, image_transform
from deploy.errors import UsageError
from deploy.evidence import Judgement, ServedEvidence, Verdict
from deploy.processes import Worker
from deploy.progress import Progress
from deploy.report.findings import SERVED_FILE
from deploy.repository.contract import binding_manifest, check_contract
from deploy.repository.manifest import Manifest, StepVersion, Verdicts
from deploy.repository.protobuf import parse_config
from deploy.repository.publish import PublishedVersion, publish
from deploy.repository.stage import Stage, open_stage
from deploy.serve.server import ServerFailed
from deploy.spec import BATCH, Dim, Spec, TensorSpec, wire_input, wire_output
from deploy.versions import StagedVersion, VersionPlan

TRANSFORM_EVIDENCE = "transform.json"
_BEST = 5
_MOST_INSTANCES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """What was settled before any work: the transform of training, and the whole images that the proof is made with."""

    transform: ImageTransform
    images: tuple[NamedImage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedPart:
    """One model of the ensemble, complete but for its place."""

    stage: Stage
    plan: StepPlan
    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedEnsemble:
    """All of it in its stages: the two Python steps, then the ensemble; what was judged of transform and whole."""

    preprocess: StagedPart
    postprocess: StagedPart
    whole: StagedPart
    output: int
    judgement: Judgement
    served: ServedEvidence | None


def part_names(name: str) -> tuple[str, str, str]:
    """What the models round the network `name` are called: the first step, the last one, the ensemble."""
    return f"{name}_preprocess", f"{name}_postprocess", f"{name}_image"


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


def _check_usable(image: NamedImage, transform: ImageTransform) -> None:
    from deploy.ensemble.models.image import BadImage, prepare

    try:
        prepare(image.data, transform.model_dump(mode="json"))
    except BadImage as error:
        raise UsageError(
            f"--images: {image.name}: {error}",
            expected="images as clients will send them",
            fix="leave it out: damaged ones are tried anyway",
        ) from error


def check_part_names(repository: Path, name: str, *, promote: bool) -> None:
    """Raises UsageError if one of the ensemble's names belongs to a model of another kind.

    Or if the first ensemble, which is served as soon as it is there, would run a network that waits to be promoted.
    """
    whole = part_names(name)[-1]
    if (repository / name).exists() and not (repository / whole).exists() and not promote:
        raise UsageError(
            f"{name} has versions, and {whole} has none: its first one is served at once, with a {name} that is "
            "not promoted",
            expected="--promote, or a name that is free",
            fix="add --promote, so that network and ensemble are served from now on, or choose another --name",
        )
    for part in part_names(name):
        bound = binding_manifest(repository, part)
        if bound is not None and bound.format not in ("python", "ensemble"):
            raise UsageError(
                f"{part} is a model of its own already ({bound.format})",
                expected=f"a name that is free, or an earlier ensemble's, for {PURPOSE}",
                fix="choose another name with --name",
            )


@contextmanager
def staged_ensemble(
    network: StagedVersion, plan: VersionPlan, images: ImagePlan, *, progress: Progress
) -> Iterator[StagedEnsemble]:
    """The ensemble round a staged network, proven and served from the stages, which go when the block is left.

    1. Compare the first step with training's transform, and settle what the whole is judged by.
    2. Stage the two steps and the ensemble.
    3. Serve all four models in a real tritonserver, and judge the answers.

    Raises UsageError if the network decides nothing, an image cannot be used, or a contract would change.
    """
    output = _deciding(plan.spec)
    with ExitStack() as stack:
        with progress.stage("prove the image transform"):  # 1
            transform, asked = _prove(network, plan, images, output=output)
        stages = [
            stack.enter_context(open_stage(network.stage.repository, name, on_step=network.stage.step))
            for name in part_names(network.stage.name)
        ]
        staged = _stage(stages, network, plan, images, output=output, transform=transform)  # 2
        asked.save(staged.whole.stage.version.evidence)
        staged.whole.stage.add_evidence(TRANSFORM_EVIDENCE, transform.to_json().encode())
        yield _served(staged, network, plan, asked, progress=progress)  # 3


def publish_ensemble(
    staged: StagedEnsemble, network: PublishedVersion, plan: VersionPlan
) -> tuple[PublishedVersion, ...]:
    """Make the staged ensemble visible, round the network's published version; what it is made of comes first.

    Raises as `deploy.repository.publish.publish` does.
    """
    first = publish(staged.preprocess.stage, staged.preprocess.manifest, plan.publish)
    last = publish(staged.postprocess.stage, staged.postprocess.manifest, plan.publish)
    whole = staged.whole
    numbers = (first.version.number, network.version.number, last.version.number)
    # Others may have published meanwhile, so that the numbers of the stage were taken.
    whole.stage.add_config(ensemble_config(whole.plan, _steps(staged, network.version.name, numbers)))
    steps = tuple(
        StepVersion(model=one.version.name, version=one.version.number, digest=one.digest)
        for one in (first, network, last)
    )
    ensemble = publish(whole.stage, whole.manifest.model_copy(update={"steps": steps}), plan.publish)
    return first, last, ensemble


def _deciding(spec: Spec) -> int:
    """The index of the output whose classes are named."""
    for index, output in enumerate(spec.outputs):
        if output.decision_axis == 1 and len(output.shape) == 2:
            return index
    outputs = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in spec.outputs)
    raise UsageError(
        f"{PURPOSE} gives labels and scores, and the network decides between no classes: {outputs}",
        expected="an output [batch, classes]",
        fix=f"leave {PURPOSE} out",
    )


def _prove(network: StagedVersion, plan: VersionPlan, images: ImagePlan, *, output: int) -> tuple[Judgement, Asked]:
    log = network.stage.work / "logs" / "reference-of-the-ensemble.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with Worker("the reference of the ensemble", log=log) as worker:
        data = [image.data for image in images.images]
        answers = worker.run(
            trained_answers, plan.checkpoint, data, images.transform, output=output, threads=plan.threads
        ).value
    judgement = judge_transform(images.images, images.transform, answers)
    classes = answers.reference.shape[1]
    question = EnsembleQuestion(
        names=(),
        damaged=0,
        labels=plan.classes or tuple(map(str, range(classes))),
        count=min(_BEST, classes),
        allowed=0.0,
        max_batch=_max_batch(network),
    )
    damaged = damaged_images(images.images[0].data)
    return judgement, make_question(images.images, damaged, answers, question)


def _max_batch(network: StagedVersion) -> int:
    """The network's own `max_batch_size`: 0 where Triton may not merge requests."""
    limit: int = parse_config(network.stage.version.config.read_text()).max_batch_size
    return limit


def _stage(
    stages: Sequence[Stage],
    network: StagedVersion,
    plan: VersionPlan,
    images: ImagePlan,
    *,
    output: int,
    transform: Judgement,
) -> StagedEnsemble:
    from deploy.ensemble.models import image, scores

    first, last, whole = stages
    logits = plan.spec.outputs[output]
    classes = logits.shape[1]
    assert isinstance(classes, int)
    count = min(_BEST, classes)
    encoded = Tensor(wire="IMAGE", dtype="string", dims=(1,))
    pixels = Tensor(wire="PIXELS", dtype=plan.spec.inputs[0].dtype, dims=_dims(plan.spec.inputs[0]))
    raw = Tensor(wire="LOGITS", dtype=logits.dtype, dims=(classes,))
    answer = (
        Tensor(wire="LABELS", dtype="string", dims=(count,)),
        Tensor(wire="SCORES", dtype="float32", dims=(count,)),
    )
    sides = {first.name: ((encoded,), (pixels,)), last.name: ((raw,), answer), whole.name: ((encoded,), answer)}
    limit = _max_batch(network)
    plans = [
        StepPlan(
            name=stage.name,
            version=stage.version.number,
            inputs=sides[stage.name][0],
            outputs=sides[stage.name][1],
            max_batch=limit,
        )
        for stage in stages
    ]
    first.add_file(TRANSFORM_FILE, images.transform.to_json().encode())
    first.add_file(MODEL_FILE, Path(image.__file__).read_bytes())
    first.add_config(python_config(plans[0], instances=min(_MOST_INSTANCES, plan.threads)))
    labels = plan.classes or tuple(map(str, range(classes)))
    last.add_file("labels.json", labels_json(labels))
    last.add_file(MODEL_FILE, Path(scores.__file__).read_bytes())
    last.add_config(python_config(plans[1], instances=1))
    parts = [
        StagedPart(stage=stage, plan=step, manifest=_manifest(step, network, transform=transform))
        for stage, step in zip(stages, plans, strict=True)
    ]
    staged = StagedEnsemble(
        preprocess=parts[0], postprocess=parts[1], whole=parts[2], output=output, judgement=transform, served=None
    )
    numbers = (first.version.number, network.stage.version.number, last.version.number)
    whole.add_config(ensemble_config(plans[2], _steps(staged, network.stage.name, numbers)))
    for part in parts:
        check_contract(part.stage.repository, part.stage.name, part.manifest, accept=plan.publish.new_contract)
    return staged


def _steps(staged: StagedEnsemble, network: str, numbers: tuple[int, int, int]) -> tuple[EnsembleStep, ...]:
    """The steps in the order in which a request passes them, each by its version's number."""
    return (
        EnsembleStep(
            model=staged.preprocess.stage.name,
            version=numbers[0],
            inputs={"IMAGE": "IMAGE"},
            outputs={"PIXELS": "pixels"},
        ),
        EnsembleStep(
            model=network,
            version=numbers[1],
            inputs={wire_input(0): "pixels"},
            outputs={wire_output(staged.output): "logits"},
        ),
        EnsembleStep(
            model=staged.postprocess.stage.name,
            version=numbers[2],
            inputs={"LOGITS": "logits"},
            outputs={"LABELS": "LABELS", "SCORES": "SCORES"},
        ),
    )


def _dims(tensor: TensorSpec) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape[1:] if isinstance(size, int))


def _manifest(plan: StepPlan, network: StagedVersion, *, transform: Judgement) -> Manifest:
    """A part's manifest: of the network's origin and environment, with its own tensors and what was proven of it."""
    batch = (Dim(name=BATCH, minimum=1, maximum=plan.max_batch),) if plan.max_batch else ()
    spec = Spec(
        inputs=tuple(tensor.spec(tensor.wire.lower(), plan.batch) for tensor in plan.inputs),
        outputs=tuple(tensor.spec(tensor.wire.lower(), plan.batch) for tensor in plan.outputs),
        dims=batch,
    )
    tensors = (*plan.inputs, *plan.outputs)
    ensemble = plan.name == part_names(network.stage.name)[2]
    needs = {"numpy": importlib.metadata.version("numpy"), "pillow": importlib.metadata.version("pillow")}
    return network.manifest.model_copy(
        update={
            "name": plan.name,
            "version": plan.version,
            "format": "ensemble" if ensemble else "python",
            "spec": spec,
            "wire": {tensor.wire: tensor.wire.lower() for tensor in tensors},
            "artifact": {} if ensemble else needs,
            "verdicts": Verdicts(parity=transform, architecture=network.manifest.verdicts.architecture),
        }
    )


def _served(
    staged: StagedEnsemble, network: StagedVersion, plan: VersionPlan, asked: Asked, *, progress: Progress
) -> StagedEnsemble:
    """The ensemble with a real server's answers; as it is where nothing is to be served, or the transform failed."""
    from dataclasses import replace

    if plan.engine is None or not staged.judgement.passed:
        return staged
    parts = (staged.preprocess, staged.postprocess, staged.whole)
    versions = [network.stage.version, *(part.stage.version for part in parts)]
    with progress.stage("serve the image ensemble in a real Triton"):
        try:
            served = check_ensemble(versions, plan.engine, asked, staged=True)
        except ServerFailed as error:
            return replace(staged, judgement=Judgement(verdict=Verdict.FAIL, reason=str(error)))
    staged.whole.stage.add_evidence(SERVED_FILE, served.to_json().encode())
    first, last, whole = (
        replace(
            part,
            manifest=part.manifest.model_copy(
                update={"verdicts": part.manifest.verdicts.model_copy(update={"served": served.judgement})}
            ),
        )
        for part in parts
    )
    return replace(staged, preprocess=first, postprocess=last, whole=whole, judgement=served.judgement, served=served)
