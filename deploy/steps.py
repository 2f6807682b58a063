"""The steps of one packaging run, from a checkpoint that was read to versions that are published.

Owns how each step calls the room that does its work, and what is said of it. Called by package, which owns their order.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from deploy.cache import artifact_store
from deploy.choose import Choice, Rules, choose
from deploy.convert.job import converters_for
from deploy.convert.model import Artifact, Format, Precision, Program
from deploy.convert.precision import Lowering
from deploy.convert.run import Conversion, ConversionPlan, convert
from deploy.device import obstacles
from deploy.doubts import Doubt, kept_work, packed_weights
from deploy.ensemble.whole import StagedEnsemble, publish_ensemble, staged_ensemble
from deploy.errors import DeployError, UnfinishedError, after
from deploy.evidence import Judgement, Verdict
from deploy.gpu import LocalGpu
from deploy.latency_evidence import LatencyEvidence
from deploy.precisions import Attempt, Taken, demand, lowering, take_fastest, worth_trying
from deploy.processes import Limits, called_after
from deploy.progress import Progress
from deploy.repository.publish import PublishedVersion, PublishOptions
from deploy.repository.stage import Stage
from deploy.request import Inputs, Outcome, PackageRequest
from deploy.serve.engines import Engine
from deploy.validate.carried import Memory, Subject, latency_key, measure_and_keep, recall
from deploy.validate.contenders import Surroundings, inputs_by_batch, open_contenders
from deploy.validate.fastest import FastestPlan, find_fastest
from deploy.validate.latency import LatencyPlan
from deploy.validate.machine import identity
from deploy.validate.pace import Pace
from deploy.validate.precision import prove_in
from deploy.validate.run import Plan, Proof
from deploy.versions import StagedVersion, VersionPlan, publish_staged, staged_version

_LONG_PROOF = 180.0  # seconds, after which whoever waits is told why
_NEWS = 180.0  # seconds from then on, after each of which it is said how far it is
_PROOF_IS_LONG = (
    "Some 20 rows are computed in float64, three times eagerly, some 60 by each artifact. It goes on; smaller inputs, "
    "where the network takes them, make it shorter (--input-shape; for a detector that was trained on smaller images "
    "--resize), and so does --max-batch 1"
)


def _telling_the_pace(pace: Pace, progress: Progress) -> Iterator[None]:
    """Each step says how far the proof is; the first one why it is long, too."""
    progress.note(f"the proof takes its time: {pace.said()}. {_PROOF_IS_LONG}")
    while True:
        yield
        progress.note(f"the proof goes on: {pace.said()}")


def formats_of(request: PackageRequest) -> tuple[Format, ...]:
    """The formats to build: those asked for, and by default those that run on the target if they are built here."""
    return tuple(name for name in request.formats if name not in left_out(request))


def left_out(request: PackageRequest) -> dict[Format, str]:
    """Why a format is not built that is one of the default ones."""
    return {} if request.by_name else {name: error.found for name, error in obstacles(request).items()}


def model_name(request: PackageRequest, inputs: Inputs, name: Format) -> str:
    """The name of the model that a format becomes: the one asked for, or one each with --all-formats."""
    return f"{inputs.name}_{name}" if request.all_formats else inputs.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One packaging run: what it was asked, what it read, and the folder it works in. One method per step."""

    request: PackageRequest
    inputs: Inputs
    work: Stage
    progress: Progress

    @property
    def limits(self) -> Limits:
        """What each child of the run may take."""
        resources = self.request.resources
        return Limits(seconds=resources.seconds, memory=resources.memory)

    @property
    def _gpu(self) -> LocalGpu | None:
        return self.request.gpu.gpu if self.request.gpu else None

    def convert(
        self, *, again: Doubt | None = None, precision: Precision | None = None, program: Program | None = None
    ) -> Conversion:
        """Step 3. Raises UnfinishedError if no format could be built, or one that was asked for by name.

        With the `program` of before in one more `precision`, and then a lost format is no more than that.
        """
        resources, folder = self.request.resources, self.work.work / (precision or "")
        plan = ConversionPlan(
            formats=formats_of(self.request),
            max_batch=self.request.max_batch,
            target=self.request.target,
            folder=folder / again.name if again else folder,
            store=artifact_store() if resources.cache and not again else None,
            jobs=resources.jobs,
            timeout=resources.seconds,
            memory_limit=resources.memory,
            lowering=lowering(self.request, precision, self.inputs, folder=self.work.work),
            program=program,
            device=self.request.device,
            packed=again.packed if again else True,
        )
        if plan.store and program is None and (trouble := plan.store.trouble()):
            self.progress.note(f"the cache {plan.store.folder} keeps nothing for the next fine-tune: {trouble}")
        conversion = convert(self.inputs.checkpoint, plan, self.progress)
        if conversion.program.reused:
            self.progress.note("the program was exported before, for modules like these")
        for name, artifact in conversion.artifacts.items():
            if artifact.reused:
                self.progress.note(f"{name}: compiled before for the same graph, with the weights of this checkpoint")
        self.work.step("converted")
        for note in conversion.program.notes:
            self.progress.note(note)
        for name, failure in conversion.failures.items():
            self.progress.note(f"{name} was lost: {failure.message}")
        if conversion.failures and program is None and (self.request.by_name or not conversion.artifacts):
            raise _conversion_error(conversion)
        return conversion

    def convert_and_prove(
        self, precision: Precision | None = None, *, program: Program | None = None, first: Proof | None = None
    ) -> tuple[Conversion, Proof]:
        """Steps 3 and 4, and both once more where it may be what was made that failed, and not the model."""
        conversion = self.convert(precision=precision, program=program)
        proof = self.prove(conversion, precision, first=first)
        for doubt in (kept_work, packed_weights):
            if found := doubt(conversion, proof):
                conversion = self._convert_again(found, precision=precision, program=program)
                proof = self.prove(conversion, precision, first=first)
        return conversion, proof

    def _convert_again(self, doubt: Doubt, **lowered: Any) -> Conversion:
        """Step 3 without the cache, which loses what the doubt is of."""
        self.progress.note(doubt.says)
        for key in doubt.keys:
            artifact_store().drop(key)
        return self.convert(again=doubt, **lowered)

    def prove(self, conversion: Conversion, precision: Precision | None = None, *, first: Proof | None = None) -> Proof:
        """Step 4; in one more precision after the `first` proof."""
        plan = Plan(
            spec=conversion.program.spec,
            logs=self.work.work / "logs",
            threads=self.request.resources.threads,
            target=self.request.target,
            program=conversion.program,
            limits=self.limits,
            allow_constant_output=self.request.allow_constant_output,
            device=self.request.device,
            pace=Pace(artifacts=len(conversion.artifacts)),
        )
        artifacts = tuple(conversion.artifacts.values())
        asked = demand(self.request, precision, self.inputs.samples)
        stage = f"prove{f' {precision}' if precision else ''} against float64"
        told = _telling_the_pace(plan.pace, self.progress)
        with self.progress.stage(stage), called_after(_LONG_PROOF, partial(next, told), every=_NEWS):
            proof = prove_in(asked, self.inputs.checkpoint, artifacts, self.inputs.samples, plan, first=first)
        self.work.step("proven")
        return proof

    def lower(self, conversion: Conversion, proof: Proof) -> Taken:
        """Steps 3 and 4 again in each precision that may gain something, and the fastest that passed, for `auto`."""
        if self.request.precision != "auto":
            return Taken(conversion=conversion, proof=proof)
        attempts = [Attempt(precision="fp32", conversion=conversion, proof=proof)]
        for precision in worth_trying(self.request.target):
            made, proved = self.convert_and_prove(precision, program=conversion.program, first=proof)
            attempts.append(Attempt(precision=precision, conversion=made, proof=proved))
        return take_fastest(self.request, attempts, logs=self.work.work / "logs", progress=self.progress)

    def quicken(self, conversion: Conversion, proof: Proof) -> tuple[Conversion, Proof]:
        """The first part of step 5: another tactic for each format that one makes faster, and its proof.

        There are none for int8, and none is measured for another device; a progress note says so.
        """
        if self.request.effort == "low":
            return conversion, proof
        resources, gpu = self.request.resources, self.request.gpu
        plan = FastestPlan(
            effort=self.request.effort,
            target=self.request.target,
            device=self.request.device,
            tensorrt=gpu is not None and not gpu.tensorrt,
            converters=lambda precision: converters_for(
                self.inputs.checkpoint, self.request.max_batch, Lowering(precision=precision)
            ),
            threads=resources.threads,
            folder=self.work.work / "tactics",
            logs=self.work.work / "logs",
            store=artifact_store() if resources.cache else None,
            limits=self.limits,
            seconds_per_cell=resources.seconds_per_cell,
        )
        found = find_fastest(self.inputs.checkpoint, conversion, proof, plan, self.progress)
        for sentence in found.said:
            self.progress.note(sentence)
        return found.conversion, found.proof

    def measure(self, conversion: Conversion, proof: Proof) -> LatencyEvidence | None:
        """Step 5; None where nothing passed that could be measured."""
        good = [
            artifact
            for name, artifact in conversion.artifacts.items()
            if proof.evidence[name].judgement.passed or self.request.accept_parity_failure
        ]
        if not good:
            return None
        bound = self.inputs.bound
        plan = LatencyPlan(
            max_batch=self.request.max_batch,
            threads=self.request.resources.threads,
            device=self.request.device,
            gpu=str(self._gpu or ""),
            target_device=self.request.target.device,
            slo_p99_ms=self.request.slo_p99_ms,
            incumbent=bound.format if bound else None,
            thorough=self.request.thorough,
            seconds_per_cell=self.request.resources.seconds_per_cell,
        )
        rows = list(proof.baseline.question.pools[0].inputs)
        surroundings = Surroundings(
            inputs=inputs_by_batch(rows, conversion.program.spec, plan.batches),
            threads=plan.threads,
            logs=self.work.work / "logs",
            limits=self.limits,
            device=self.request.device,
        )
        subject = Subject(
            checkpoint=self.inputs.checkpoint, program=conversion.program, artifacts=good, inputs=surroundings.inputs
        )
        memory = self._latency_memory(subject, plan)
        if memory and not self.request.resources.measure_again:
            known = recall(memory, plan, [one.format for one in good])
            if known is not None:
                self.progress.note(f"latency is {known.carried}; --measure-again measures this one")
                self.work.step("measured")
                return known
        with (
            self.progress.stage("measure latency"),
            open_contenders(self.inputs.checkpoint, good, surroundings) as contenders,
        ):
            latency = measure_and_keep(contenders, plan, memory)
        for gone in latency.lost:
            self.progress.note(str(gone))
        self.work.step("measured")
        return latency

    def _latency_memory(self, subject: Subject, plan: LatencyPlan) -> Memory | None:
        """Where the figures of these artifacts are kept; None where they are neither kept nor carried over."""
        key = latency_key(subject, plan, machine=identity()) if self.request.resources.cache else None
        if key is None:
            return None
        return Memory(store=artifact_store(), key=key, checkpoint=subject.checkpoint, work=self.work.work)

    def choose(self, conversion: Conversion, proof: Proof, latency: LatencyEvidence | None) -> Choice:
        """Step 6."""
        bound = self.inputs.bound
        rules = Rules(
            formats=formats_of(self.request),
            by_name=self.request.by_name,
            all_formats=self.request.all_formats,
            bound=bound.compiled if bound else None,
            accept_parity_failure=self.request.accept_parity_failure,
            slo=self.request.slo_p99_ms is not None,
        )
        failures = {name: failure.message for name, failure in conversion.failures.items()}
        return choose(rules, failures=failures, parity=proof.evidence, latency=latency)

    def version_plan(
        self, conversion: Conversion, proof: Proof, *, latency: LatencyEvidence | None, engine: Engine | None
    ) -> VersionPlan:
        """What all versions of this run share."""
        return VersionPlan(
            checkpoint=self.inputs.checkpoint,
            spec=conversion.program.spec,
            classes=self.inputs.classes,
            target=self.request.target,
            threads=self.request.resources.threads,
            command=self.request.command,
            proof=proof,
            latency=latency,
            engine=engine,
            slo_p99_ms=self.request.slo_p99_ms,
            publish=PublishOptions(promote=self.request.promote, new_contract=self.request.new_contract),
            gpu=self._gpu,
        )

    def publish(self, choice: Choice, conversion: Conversion, plan: VersionPlan) -> Outcome:
        """Steps 7 and 8: all staged and served before the first is published, so that a failure publishes nothing.

        Without `all_formats` the first that serves is enough, unless the formats were asked for by name.
        """
        lost, served = {**left_out(self.request), **choice.lost}, []
        good: list[tuple[StagedVersion, StagedEnsemble | None]] = []
        with ExitStack() as stages:
            for name in choice.publish:
                staged = stages.enter_context(self._staged(conversion.artifacts[name], plan))
                if staged.served is not None:
                    served.append(staged.served)
                ensemble = self._ensemble(staged, plan, stages) if staged.judgement.passed else None
                if ensemble is not None and ensemble.served is not None:
                    served.append(ensemble.served)
                judgement = staged.judgement if ensemble is None else ensemble.judgement
                if judgement.passed:
                    good.append((staged, ensemble))
                    if not self.request.all_formats:
                        break
                else:
                    lost[name] = f"{'ensemble' if ensemble else 'served'}: {judgement.reason}"
                    self.progress.note(f"{name} was lost: {lost[name]}")
                    if self.request.by_name:
                        good.clear()
                        break
            published: list[PublishedVersion] = []
            try:
                published.extend(chain.from_iterable(_published(*one, plan) for one in good))
            except DeployError as error:
                raise after(" and ".join(str(one.version) for one in published), error) from error
        judgement = choice.judgement if good or not choice.publish else _not_served(lost)
        return Outcome(judgement=judgement, published=tuple(published), served=tuple(served), lost=lost)

    def _ensemble(self, staged: StagedVersion, plan: VersionPlan, stages: ExitStack) -> StagedEnsemble | None:
        """The ensemble round a staged version, served with it; None where none was asked for."""
        ensemble = self.inputs.ensemble
        if ensemble is None:
            return None
        return stages.enter_context(staged_ensemble(staged, plan, ensemble, progress=self.progress))

    def _staged(self, artifact: Artifact, plan: VersionPlan) -> AbstractContextManager[StagedVersion]:
        keep = self.request.keep_failed
        return staged_version(
            artifact,
            plan,
            work=self.work,
            name=model_name(self.request, self.inputs, artifact.format),
            keep_failed=keep / f"version-{artifact.format}" if keep else None,
            progress=self.progress,
        )


def _published(staged: StagedVersion, ensemble: StagedEnsemble | None, plan: VersionPlan) -> Iterator[PublishedVersion]:
    """The version, and after it the ensemble that runs it."""
    network = publish_staged(staged, plan)
    yield network
    if ensemble is not None:
        yield from publish_ensemble(ensemble, network, plan)


def _not_served(lost: dict[Format, str]) -> Judgement:
    return Judgement(verdict=Verdict.FAIL, reason="; ".join(f"{name}: {why}" for name, why in lost.items()))


def _conversion_error(conversion: Conversion) -> UnfinishedError:
    lines = [f"  {name}: {failure.message}" for name, failure in conversion.failures.items()]
    again = [failure.reproduce for failure in conversion.failures.values()]
    return UnfinishedError(
        "\n".join(["no version was made, since a conversion failed", *lines]), fix=f"see it alone: {again[0]}"
    )
