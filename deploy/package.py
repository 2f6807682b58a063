"""The main job: a checkpoint becomes a proven, published Triton model version.

Owns the order of the steps and what each outcome means; every step's work lives in its own room. Called by the
command `package`. This process never imports torch: what needs it runs in children.

    1. Find what this machine lacks, before any work: a GPU where one was asked for, an engine, a compiler.
    2. Read the checkpoint, the labels and the samples; look up what the name is bound to.
    3. Convert: one program, then each format in a child of its own; compiled code of before takes the new weights.
    4. Prove each artifact against the float64 reference, and eager against what training computed. One that fails and
       holds code of before is compiled again first: only what was made from this checkpoint may refute it. With
       `--precision auto` both once more in each precision; of each format the fastest that passed goes on.
    5. Measure latency, artifacts and eager interleaved; with an effort above low, after the fastest correct artifact of
       each format was found.
    6. Choose what deserves to be published.
    7. Stage it with its evidence, serve it from the stage in a real tritonserver, and judge the answers.
    8. Publish it with its digests, by one rename.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.checkpoint.load import read_to_package
from deploy.checkpoint.model import Checkpoint
from deploy.convert.compiler import require_compiler
from deploy.convert.export import program_dims, program_inputs
from deploy.convert.model import Format
from deploy.device import obstacles, place
from deploy.ensemble.plan import EnsembleRequest, plan_ensemble
from deploy.ensemble.whole import EnsemblePlan
from deploy.errors import UsageError
from deploy.precisions import (
    check_precision,
    check_rows,
)
from deploy.processes import Worker, prepare
from deploy.progress import Progress, Silent
from deploy.repository.contract import binding_manifest, check_contract
from deploy.repository.layout import check_name, next_number
from deploy.repository.manifest import Manifest
from deploy.repository.stage import Step, open_stage
from deploy.request import Inputs, PackagePlan, PackageRequest, PackageResult
from deploy.serve.engines import Engine, find_engine
from deploy.serve.python_environment import find_python_environment
from deploy.spec import Spec
from deploy.steps import Run, formats_of, left_out, model_name
from deploy.validate.behaviour import check_labels, read_labels
from deploy.validate.samples import load_samples

_SPELLED: dict[Format, str] = {"aoti": "AOTInductor", "onnx": "ONNX"}


def package(request: PackageRequest, *, progress: Progress = Silent(), on_step: Step = lambda _: None) -> PackageResult:
    """Package a checkpoint, and say what came of it; nothing is published unless every check passed.

    `on_step` is told of each boundary as it is passed. Raises MissingError, UsageError or UnfinishedError as the
    exit codes have it.
    """
    check_precision(request)
    request = place(request)  # 1
    engine = _check_machine(request)
    inputs = read_inputs(request, progress)  # 2
    with open_stage(request.repository, inputs.name, keep_failed=request.keep_failed, on_step=on_step) as work:
        run = Run(request=request, inputs=inputs, work=work, progress=progress)
        conversion, proof = run.convert_and_prove()  # 3, 4
        taken = run.lower(conversion, proof)
        conversion, proof = taken.conversion, taken.proof
        conversion, proof = run.quicken(conversion, proof)
        latency = run.measure(conversion, proof)  # 5
        choice = run.choose(conversion, proof, latency)  # 6
        plan = run.version_plan(conversion, proof, latency=latency, engine=engine)
        plan = replace(plan, precision=taken.evidence)
        outcome = run.publish(choice, conversion, plan)  # 7, 8
        if outcome.published:
            work.published = outcome.published[-1].version
    return PackageResult(
        checkpoint=inputs.checkpoint,
        conversion=conversion,
        parity=tuple(proof.evidence.values()),
        behaviour=proof.behaviour,
        latency=latency,
        outcome=outcome,
        precision=taken.evidence,
    )


def plan_package(request: PackageRequest, *, progress: Progress = Silent()) -> PackagePlan:
    """What `package` would do: the same checks and the same reading of the input, and nothing written."""
    check_precision(request)
    request = place(request)
    engine = _check_machine(request)
    inputs = read_inputs(request, progress)
    names = {name: model_name(request, inputs, name) for name in formats_of(request)}
    return PackagePlan(
        inputs=inputs,
        formats=formats_of(request),
        left_out=left_out(request),
        next_versions={name: next_number(request.repository / name) for name in names.values()},
        engine=engine,
    )


def read_inputs(request: PackageRequest, progress: Progress) -> Inputs:
    """The checkpoint and what was given beside it, each checked against the others. Raises UsageError if one is bad."""
    with progress.stage("read the checkpoint"), Worker("checkpoint", log=Path(os.devnull)) as worker:
        checkpoint = worker.run(read_to_package, request.checkpoint).value
    for note in checkpoint.notes:
        progress.note(note)
    name = check_name(request.name or checkpoint.name)
    labels = read_labels(request.labels) if request.labels else None
    classes = check_labels(labels, checkpoint)
    samples = load_samples(request.samples, checkpoint.inputs, checkpoint.dims) if request.samples else None
    check_rows(request, checkpoint, samples)
    for lost, left in left_out(request).items():
        progress.note(f"NO {_SPELLED[lost]} artifact, {', '.join(formats_of(request))} only: {left}")
    if request.target.device != request.device:
        progress.note(
            f"target {request.target.name} runs on {request.target.device}: proven on CPU, latency not measured"
        )
    if samples is None:
        progress.note("no --samples: seeded inputs only, so whether training computed the same stays unconfirmed")
    # A model that could not be published to is refused now, whether its contract may change or not.
    names = [f"{name}_{format_}" for format_ in formats_of(request)] if request.all_formats else [name]
    bindings = [binding_manifest(request.repository, one) for one in names]
    bound = None if request.all_formats or request.new_contract else bindings[0]
    ensemble = _plan_ensemble(request, checkpoint, name)
    inputs = Inputs(checkpoint=checkpoint, name=name, classes=classes, samples=samples, bound=bound, ensemble=ensemble)
    _check_bound(request, inputs)
    return inputs


def _plan_ensemble(request: PackageRequest, checkpoint: Checkpoint, name: str) -> EnsemblePlan | None:
    """The plan of the ensemble that was asked for. Raises UsageError if there cannot be one."""
    names = [f"{name}_{format_}" if request.all_formats else name for format_ in formats_of(request)]
    asked = EnsembleRequest(
        kind=request.ensemble,
        images=request.images,
        exif_orientation=request.exif_orientation,
        texts=request.texts,
        promote=request.promote,
    )
    return plan_ensemble(asked, checkpoint, repository=request.repository, names=names)


def _check_machine(request: PackageRequest) -> Engine | None:
    """The engine to serve with, None without a served check. Raises MissingError before any work is done."""
    # What children are called with is of modules that this one imports: each would import them anew.
    prepare(__name__, "deploy.convert.preload")
    blocked = obstacles(request)
    if blocked and (request.by_name or not formats_of(request)):
        raise next(iter(blocked.values()))
    if "aoti" in formats_of(request):
        require_compiler()
    engine = find_engine() if request.serve_check else None
    if request.ensemble and engine is not None and engine.kind == "local":
        find_python_environment()
    return engine


def _check_bound(request: PackageRequest, inputs: Inputs) -> None:
    """Refuse what the name's contract would refuse in the end, as far as it shows before any work."""
    bound = inputs.bound
    if bound is None:
        return
    if bound.format not in formats_of(request):
        lost = {str(name): why for name, why in left_out(request).items()}.get(bound.format)
        raise UsageError(
            f"{inputs.name} is bound to the format {bound.format} by its version {bound.version}"
            + (f", which is not built here: {lost}" if lost else ""),
            expected=f"{bound.format} among --formats",
            fix="choose another name with --name, or accept what clients will notice with --new-contract",
        )
    check_contract(request.repository, inputs.name, _promise(request, inputs, bound), accept=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Promise:
    """A contract as far as it is known before the export: the outputs are taken to stay as they are."""

    format: Format
    spec: Spec
    classes: tuple[str, ...] | None


def _promise(request: PackageRequest, inputs: Inputs, bound: Manifest) -> _Promise:
    tensors = program_inputs(inputs.checkpoint.inputs, max_batch=request.max_batch)
    own = program_dims(inputs.checkpoint, max_batch=request.max_batch)
    kept = (dim for dim in bound.spec.dims if dim.name not in {dim.name for dim in own})
    spec = Spec(inputs=tensors, outputs=bound.spec.outputs, dims=(*own, *kept))
    return _Promise(format=bound.compiled, spec=spec, classes=inputs.classes)
