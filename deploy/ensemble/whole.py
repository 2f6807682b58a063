"""An ensemble round one proven version, whatever goes in: its models staged, served together, published in their order.

Owns what images and texts have in common. `image` and `text` say what the steps are, `proof` judges. Called by package.

    NAME_preprocess    Triton's python backend: what clients send becomes the network's inputs, as in training
    NAME               the proven version itself, by its number
    NAME_postprocess   Triton's python backend: softmax, the best labels and their scores; none behind an embedding
    NAME_image, _text  the ensemble of these very versions

Each is one rename, the ensemble last: whoever sees it sees all that it runs.
"""

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from deploy.ensemble.configs import MODEL_FILE, EnsembleStep, StepPlan, Tensor, ensemble_config, python_config
from deploy.ensemble.inputs import Kind
from deploy.ensemble.proof import LABELS, SCORES, Asked, labels_json
from deploy.ensemble.served import check_ensemble
from deploy.errors import UsageError
from deploy.evidence import Judgement, ServedEvidence, Verdict
from deploy.progress import Progress
from deploy.report.findings import SERVED_FILE
from deploy.repository.contract import binding_manifest, check_contract
from deploy.repository.layout import Version
from deploy.repository.manifest import Manifest, StepVersion, Verdicts
from deploy.repository.protobuf import parse_config
from deploy.repository.publish import PublishedVersion, publish
from deploy.repository.stage import Stage, open_stage
from deploy.serve.server import ServerFailed
from deploy.spec import BATCH, Dim, Spec, TensorSpec, wire_input, wire_output
from deploy.versions import StagedVersion, VersionPlan

BEST = 5
_MOST_INSTANCES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonStep:
    """A model of Triton's python backend: what lies beside its `model.py`, and the packages it was proven with."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    source: Path
    files: Mapping[str, bytes]
    instances: int
    needs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What lies round the network, whose output number `output` is used; `after` is None where that is the answer."""

    before: PythonStep
    after: PythonStep | None
    output: int
    outputs: tuple[Tensor, ...]

    @property
    def steps(self) -> tuple[PythonStep, ...]:
        """The models of the python backend in the order in which a request passes them."""
        return (self.before,) if self.after is None else (self.before, self.after)

    @property
    def answered(self) -> str:
        """What the ensemble calls the network's output."""
        return self.outputs[0].wire if self.after is None else self.after.inputs[0].wire.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """A design whose first step was held against training, and what the served whole is to be asked."""

    design: Design
    judgement: Judgement
    asked: Asked


class EnsemblePlan(Protocol):
    """What was settled before any work. `evidence` is the file in which the first step's judgement lies."""

    @property
    def kind(self) -> Kind:
        """What goes in."""

    @property
    def evidence(self) -> str:
        """The evidence file of the first step."""

    def prove(self, network: StagedVersion, plan: VersionPlan) -> Proven:
        """The design, its first step judged. Raises UsageError if the network gives nothing to answer with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedPart:
    """One model of the ensemble, complete but for its place."""

    stage: Stage
    plan: StepPlan
    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedEnsemble:
    """All of it in its stages: the Python steps, then the ensemble; what was judged of first step and whole."""

    design: Design
    steps: tuple[StagedPart, ...]
    whole: StagedPart
    judgement: Judgement
    served: ServedEvidence | None


def part_names(name: str, kind: Kind) -> tuple[str, str, str]:
    """What the models round the network `name` are called: the first step, the last one, the ensemble."""
    return f"{name}_preprocess", f"{name}_postprocess", f"{name}_{kind}"


def check_part_names(repository: Path, name: str, kind: Kind, *, promote: bool) -> None:
    """Raises UsageError if one of the ensemble's names belongs to a model of another kind.

    Or if the first ensemble, which is served as soon as it is there, would run a network that waits to be promoted.
    """
    whole = part_names(name, kind)[-1]
    if (repository / name).exists() and not (repository / whole).exists() and not promote:
        raise UsageError(
            f"{name} has versions, and {whole} has none: its first one is served at once, with a {name} that is "
            "not promoted",
            expected="--promote, or a name that is free",
            fix="add --promote, so that network and ensemble are served from now on, or choose another --name",
        )
    for part in part_names(name, kind):
        bound = binding_manifest(repository, part)
        if bound is not None and bound.format not in ("python", "ensemble"):
            raise UsageError(
                f"{part} is a model of its own already ({bound.format})",
                expected=f"a name that is free, or an earlier ensemble's, for --ensemble {kind}",
                fix="choose another name with --name",
            )


@contextmanager
def staged_ensemble(
    network: StagedVersion, plan: VersionPlan, ensemble: EnsemblePlan, *, progress: Progress
) -> Iterator[StagedEnsemble]:
    """The ensemble round a staged network, proven and served from the stages, which go when the block is left.

    1. Compare the first step with what training does, and settle what the whole is judged by.
    2. Stage the Python steps and the ensemble.
    3. Serve all models in a real tritonserver, and judge the answers.

    Raises UsageError if the network gives nothing to answer with, an input cannot be used, or a contract would change.
    """
    with ExitStack() as stack:
        with progress.stage(f"prove what makes the {ensemble.kind}s the network's inputs"):  # 1
            proven = ensemble.prove(network, plan)
        first, last, whole = part_names(network.stage.name, ensemble.kind)
        names = (first, whole) if proven.design.after is None else (first, last, whole)
        stages = [
            stack.enter_context(open_stage(network.stage.repository, name, on_step=network.stage.step))
            for name in names
        ]
        staged = _stage(stages, network, plan, proven)  # 2
        proven.asked.save(staged.whole.stage.version.evidence)
        staged.whole.stage.add_evidence(ensemble.evidence, proven.judgement.to_json().encode())
        yield _served(staged, network, plan, proven.asked, progress=progress)  # 3


def publish_ensemble(
    staged: StagedEnsemble, network: PublishedVersion, plan: VersionPlan
) -> tuple[PublishedVersion, ...]:
    """Make the staged ensemble visible, round the network's published version; what it is made of comes first.

    Raises as `deploy.repository.publish.publish` does.
    """
    done = [publish(part.stage, part.manifest, plan.publish) for part in staged.steps]
    running = (done[0], network, *done[1:])
    whole = staged.whole
    # Others may have published meanwhile, so that the numbers of the stage were taken.
    whole.stage.add_config(ensemble_config(whole.plan, _steps(staged.design, [one.version for one in running])))
    steps = tuple(StepVersion(model=one.version.name, version=one.version.number, digest=one.digest) for one in running)
    ensemble = publish(whole.stage, whole.manifest.model_copy(update={"steps": steps}), plan.publish)
    return *done, ensemble


def instances(plan: VersionPlan) -> int:
    """How many processes make the network's inputs: one per thread that the network has, and four at most."""
    return min(_MOST_INSTANCES, plan.threads)


def max_batch(network: StagedVersion) -> int:
    """The network's own `max_batch_size`: 0 where Triton may not merge requests."""
    limit: int = parse_config(network.stage.version.config.read_text()).max_batch_size
    return limit


def scores_step(logits: TensorSpec, classes: Sequence[str] | None) -> PythonStep:
    """The last step behind a classifier: the best labels of its `logits` [batch, classes] and their scores."""
    from deploy.ensemble.models import scores

    width = logits.shape[1]
    assert isinstance(width, int)
    count = min(BEST, width)
    return PythonStep(
        inputs=(Tensor(wire="LOGITS", dtype=logits.dtype, dims=(width,)),),
        outputs=(
            Tensor(wire=LABELS, dtype="string", dims=(count,)),
            Tensor(wire=SCORES, dtype="float32", dims=(count,)),
        ),
        source=Path(scores.__file__),
        files={"labels.json": labels_json(label_names(classes, width))},
        instances=1,
        needs=("numpy",),
    )


def label_names(classes: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The names of the classes; their numbers where nobody named them."""
    return tuple(classes or map(str, range(count)))


def deciding(spec: Spec, kind: Kind) -> int:
    """The index of the output whose classes are named. Raises UsageError where there is none."""
    for index, output in enumerate(spec.outputs):
        if output.decision_axis == 1 and len(output.shape) == 2:
            return index
    outputs = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in spec.outputs)
    raise UsageError(
        f"--ensemble {kind} gives labels and scores, and the network decides between no classes: {outputs}",
        expected="an output [batch, classes]",
        fix=f"leave --ensemble {kind} out",
    )


def _stage(stages: Sequence[Stage], network: StagedVersion, plan: VersionPlan, proven: Proven) -> StagedEnsemble:
    design, limit = proven.design, max_batch(network)
    sides = [*((step.inputs, step.outputs) for step in design.steps), (design.before.inputs, design.outputs)]
    plans = [
        StepPlan(name=stage.name, version=stage.version.number, inputs=inputs, outputs=outputs, max_batch=limit)
        for stage, (inputs, outputs) in zip(stages, sides, strict=True)
    ]
    for stage, step, step_plan in zip(stages, design.steps, plans, strict=False):
        for name, data in step.files.items():
            stage.add_file(name, data)
        stage.add_file(MODEL_FILE, step.source.read_bytes())
        stage.add_config(python_config(step_plan, instances=step.instances))
    needs = [*(step.needs for step in design.steps), None]
    parts = [
        StagedPart(stage=stage, plan=step, manifest=_manifest(step, network, needs=need, judgement=proven.judgement))
        for stage, step, need in zip(stages, plans, needs, strict=True)
    ]
    staged = StagedEnsemble(
        design=design, steps=tuple(parts[:-1]), whole=parts[-1], judgement=proven.judgement, served=None
    )
    running = _in_order(staged, network)
    stages[-1].add_config(ensemble_config(plans[-1], _steps(design, running)))
    for part in parts:
        check_contract(part.stage.repository, part.stage.name, part.manifest, accept=plan.publish.new_contract)
    return staged


def _in_order(staged: StagedEnsemble, network: StagedVersion) -> list[Version]:
    """The staged versions in the order in which a request passes them."""
    first, *rest = (part.stage.version for part in staged.steps)
    return [first, network.stage.version, *rest]


def _steps(design: Design, running: Sequence[Version]) -> tuple[EnsembleStep, ...]:
    """The steps in the order in which a request passes them, each by its version's number."""
    before, network, *after = running
    steps = [
        EnsembleStep(
            model=before.name,
            version=before.number,
            inputs={tensor.wire: tensor.wire for tensor in design.before.inputs},
            outputs={tensor.wire: tensor.wire.lower() for tensor in design.before.outputs},
        ),
        EnsembleStep(
            model=network.name,
            version=network.number,
            inputs={wire_input(index): tensor.wire.lower() for index, tensor in enumerate(design.before.outputs)},
            outputs={wire_output(design.output): design.answered},
        ),
    ]
    for version in after:
        assert design.after is not None
        steps.append(
            EnsembleStep(
                model=version.name,
                version=version.number,
                inputs={design.after.inputs[0].wire: design.answered},
                outputs={tensor.wire: tensor.wire for tensor in design.after.outputs},
            )
        )
    return tuple(steps)


def _manifest(plan: StepPlan, network: StagedVersion, *, needs: Sequence[str] | None, judgement: Judgement) -> Manifest:
    """A part's manifest: of the network's origin and environment, with its own tensors and what was proven of it.

    `needs` are the packages of a Python step, None for the ensemble.
    """
    tensors = (*plan.inputs, *plan.outputs)
    dynamic = {size for tensor in tensors for size in tensor.dims}
    batch = (Dim(name=BATCH, minimum=1, maximum=plan.max_batch),) if plan.max_batch else ()
    spec = Spec(
        inputs=tuple(tensor.spec(tensor.wire.lower(), plan.batch) for tensor in plan.inputs),
        outputs=tuple(tensor.spec(tensor.wire.lower(), plan.batch) for tensor in plan.outputs),
        dims=(*batch, *(dim for dim in network.manifest.spec.dims if dim.name in dynamic)),
    )
    return network.manifest.model_copy(
        update={
            "name": plan.name,
            "version": plan.version,
            "format": "ensemble" if needs is None else "python",
            "spec": spec,
            "wire": {tensor.wire: tensor.wire.lower() for tensor in tensors},
            "artifact": {name: importlib.metadata.version(name) for name in needs or ()},
            "verdicts": Verdicts(parity=judgement, architecture=network.manifest.verdicts.architecture),
        }
    )


def _served(
    staged: StagedEnsemble, network: StagedVersion, plan: VersionPlan, asked: Asked, *, progress: Progress
) -> StagedEnsemble:
    """The ensemble with a real server's answers; as it is where nothing is to be served, or the first step failed."""
    if plan.engine is None or not staged.judgement.passed:
        return staged
    versions = [network.stage.version, *(part.stage.version for part in (*staged.steps, staged.whole))]
    with progress.stage(f"serve the {asked.question.kind} ensemble in a real Triton"):
        try:
            served = check_ensemble(versions, plan.engine, asked, staged=True)
        except ServerFailed as error:
            return replace(staged, judgement=Judgement(verdict=Verdict.FAIL, reason=str(error)))
    staged.whole.stage.add_evidence(SERVED_FILE, served.to_json().encode())
    *steps, whole = (
        replace(
            part,
            manifest=part.manifest.model_copy(
                update={"verdicts": part.manifest.verdicts.model_copy(update={"served": served.judgement})}
            ),
        )
        for part in (*staged.steps, staged.whole)
    )
    return replace(staged, steps=tuple(steps), whole=whole, judgement=served.judgement, served=served)
