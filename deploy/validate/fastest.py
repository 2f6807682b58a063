"""The fastest correct artifact of each format: alternatives are made, proven like any, and raced against the default.

Owns what is tried and which one is taken; tactics are listed in `deploy.convert.tactics`, the arithmetic is that of the
latency race. Called by package, for an effort above `low`.

    1. Look up what was chosen before for the same graph, on this processor, with these versions.
    2. Make each alternative, in a child of its own; one that only opens the file otherwise costs nothing.
    3. Prove it against the float64 reference. A wrong one is dropped by name.
    4. Race what is left against the default and the default once more. An alternative is taken only where the whole
       interval of its ratio lies beyond the noise at batch 1 and it is not shown slower at the largest batch.
    5. Keep the choice, unless the machine was too noisy to make one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from deploy import __version__
from deploy.cache import Store
from deploy.checkpoint.model import Checkpoint
from deploy.convert.aoti_prepack import is_packed
from deploy.convert.job import CONVERTERS
from deploy.convert.model import PRECISIONS, Artifact, Device, Format, Precision
from deploy.convert.run import Conversion
from deploy.convert.tactics import (
    DEFAULT,
    UNPACKED,
    Effort,
    Tactic,
    alternatives,
    default_tactic,
    described,
    tensorrt,
)
from deploy.errors import DeployError
from deploy.evidence import ParityEvidence
from deploy.files import sha256_bytes, sha256_file
from deploy.latency_evidence import LatencyRatio
from deploy.processes import Limits, Worker
from deploy.progress import Progress
from deploy.records import Record
from deploy.targets import Target
from deploy.validate.baseline import Baseline
from deploy.validate.choices import Choice, keep, pick, recall
from deploy.validate.contenders import Surroundings, artifact_entrant, inputs_by_batch, open_entrants
from deploy.validate.latency import LatencyPlan, take_figures
from deploy.validate.machine import cpu_model, installed_versions
from deploy.validate.run import Plan, Proof, prove_artifact

_ATTEMPTS = 3  # at a race on a machine that others use too: one that decides nothing wasted all the work before it
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class FastestPlan:
    """How hard to look, and where. `folder` is for what is made; `store` is where choices are kept, None for nowhere.

    `alternatives` lists the tactics of a format beside the default one, `converters` gives what makes artifacts in a
    precision. `tensorrt`: ONNX Runtime's provider of that name loads here.
    """

    effort: Effort
    target: Target
    device: Device = "cpu"
    tensorrt: bool = False
    threads: int
    folder: Path
    logs: Path
    store: Store | None = None
    limits: Limits = field(default_factory=Limits)
    seconds_per_cell: float = 1.0
    alternatives: Callable[[Format, Effort, Device], tuple[Tactic, ...]] = alternatives
    converters: Callable[[Precision], Mapping[Format, Callable[..., Artifact]]] = lambda _: CONVERTERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Fastest:
    """The conversion and the proof with the artifacts that were chosen, and one sentence for each thing found out."""

    conversion: Conversion
    proof: Proof
    said: tuple[str, ...]


def no_tactics(target: Target, device: Device, precision: Precision) -> str:
    """Why nothing faster can be looked for in a run on this device; empty where it can."""
    if precision == "int8":
        return "there are none for int8"
    return "" if target.device == device else f"the target runs on {target.device}, this run has {device}"


def _precision(artifact: Artifact) -> Precision:
    """What the artifact computes in; with `--precision auto` each format may have another."""
    return next(one for one in PRECISIONS if one == artifact.details["precision"])


def find_fastest(
    checkpoint: Checkpoint, conversion: Conversion, proof: Proof, plan: FastestPlan, progress: Progress
) -> Fastest:
    """The same conversion and proof, with a faster artifact for each format that has one.

    A format whose default artifact did not pass is left as it is.
    """
    artifacts, evidence, said = dict(conversion.artifacts), dict(proof.evidence), []
    for format_, artifact in conversion.artifacts.items():
        if plan.effort == "low" or not proof.evidence[format_].judgement.passed:
            continue
        if obstacle := no_tactics(plan.target, plan.device, _precision(artifact)):
            said.append(f"{format_}: no tactic is tried: {obstacle}")
            continue
        search = _Search(
            checkpoint=checkpoint, conversion=conversion, baseline=proof.baseline_of(format_), plan=plan,
            default=artifact, parity=proof.evidence[format_],
        )  # fmt: skip
        with progress.stage(f"find the fastest {format_}"):
            found = search.run()
        artifacts[format_], evidence[format_] = found.artifact, found.parity
        said += [f"{format_}: {sentence}" for sentence in found.said]
    return Fastest(
        conversion=replace(conversion, artifacts=artifacts), proof=replace(proof, evidence=evidence), said=tuple(said)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """An artifact by one tactic, that passed its proof."""

    tactic: Tactic
    artifact: Artifact
    parity: ParityEvidence


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    artifact: Artifact
    parity: ParityEvidence
    said: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """The search for one format. `default` is its artifact by the default tactic, which passed with `parity`."""

    checkpoint: Checkpoint
    conversion: Conversion
    baseline: Baseline
    plan: FastestPlan
    default: Artifact
    parity: ParityEvidence
    said: list[str] = field(default_factory=list)

    def run(self) -> _Found:
        """What is to be published for this format."""
        key = choice_key(self.checkpoint, self.conversion, self.default, self.plan)
        known = recall(self.plan.store, key, work=self.plan.logs)
        if known is not None:
            return self._as_before(known, key)
        candidates = [self._default(), *self._made()]
        if len(candidates) == 1:
            return self._found(candidates[0], "nothing else could be tried")
        try:
            ratios = self._race(candidates)
        except DeployError as error:
            return self._found(candidates[0], f"nothing could be measured: {error.found}")
        best, measured, sure = pick(ratios, [one.tactic.name for one in candidates])
        chosen = next(one for one in candidates if one.tactic.name == best)
        if sure:
            keep(Choice(tactic=chosen.tactic, measured=measured), self.plan.store, key, work=self.plan.logs)
        return self._found(chosen, measured)

    def _default(self) -> _Candidate:
        return _Candidate(tactic=default_tactic(self.default.format), artifact=self.default, parity=self.parity)

    def _made(self) -> Iterator[_Candidate]:
        for tactic in _tactics(self.conversion, self.default, self.plan):
            candidate = self._make(tactic)
            if candidate is not None:
                yield candidate

    def _make(self, tactic: Tactic) -> _Candidate | None:
        """The artifact by this tactic; None, and why, where it cannot be made or is wrong."""
        try:
            artifact = self._convert(tactic)
        except DeployError as error:
            self.said.append(f"tactic {tactic.name!r} is left out: {error.found}")
            return None
        plan = Plan(
            spec=self.conversion.program.spec,
            logs=self.plan.logs,
            threads=self.plan.threads,
            target=self.plan.target,
            limits=self.plan.limits,
            search_seconds=0.0,
            device=self.plan.device,
        )
        parity = prove_artifact(self.checkpoint, artifact, self.baseline, plan)
        parity = parity.model_copy(update={"precision": self.parity.precision})
        if not parity.judgement.passed:
            self.said.append(f"tactic {tactic.name!r} is dropped, its numbers are wrong: {parity.judgement.reason}")
            self._forget(tactic, artifact)
            return None
        return _Candidate(tactic=tactic, artifact=artifact, parity=parity)

    def _forget(self, tactic: Tactic, artifact: Artifact) -> None:
        """Drop the work that gave wrong numbers from the cache, unless it is the default's own."""
        for key in (artifact.reused, artifact.kept):
            if key and self.plan.store and not tactic.at_run_time:
                self.plan.store.drop(key)

    def _convert(self, tactic: Tactic) -> Artifact:
        details = {**self.default.details, **described(tactic)}
        if tactic.at_run_time:
            return replace(self.default, details=details)
        name = f"{tactic.format}-{'-'.join(tactic.name.replace(',', '').split())}"
        folder = self.plan.folder / name
        folder.mkdir(parents=True)
        with Worker(f"conversion to {name}", log=self.plan.logs / f"{name}.log", limits=self.plan.limits) as worker:
            convert = self.plan.converters(_precision(self.default))[tactic.format]
            done = worker.run(
                convert, self.conversion.program, target=self.plan.target, folder=folder, store=self.plan.store,
                tactic=tactic,
            )  # fmt: skip
        details = done.value.details | {"precision": _precision(self.default)}
        return replace(done.value, seconds=done.seconds, peak_memory=done.peak_memory, details=details)

    def _race(self, candidates: Sequence[_Candidate]) -> tuple[LatencyRatio, ...]:
        """Each candidate's ratio to the default one, and the default's to itself."""
        spec, threads = self.conversion.program.spec, self.plan.threads
        plan = LatencyPlan(
            max_batch=spec.max_batch, threads=threads, incumbent=DEFAULT, seconds_per_cell=self.plan.seconds_per_cell,
            attempts=_ATTEMPTS, device=self.plan.device, target_device=self.plan.target.device,
        )  # fmt: skip
        rows = list(self.baseline.question.pools[0].inputs)
        given = Surroundings(
            inputs=inputs_by_batch(rows, spec, plan.batches), threads=threads, logs=self.plan.logs,
            limits=self.plan.limits, device=self.plan.device,
        )  # fmt: skip
        entrants = [
            artifact_entrant(
                one.tactic.name, one.artifact.path, format=one.artifact.format, threads=threads,
                device=self.plan.device, details=one.artifact.details,
            )
            for one in candidates
        ]  # fmt: skip
        with open_entrants([entrants[0], entrants[0].control(), *entrants[1:]], given) as contenders:
            figures = take_figures(contenders, plan)
        self.said.extend(map(str, figures.lost))
        lost = {one.contender for one in figures.lost}
        return tuple(ratio for ratio in figures.ratios if ratio.contender not in lost)

    def _as_before(self, known: Choice, key: str) -> _Found:
        """The artifact by the tactic that was chosen before; the default one where that fails its proof here."""
        measured = f"as measured before: {known.measured}"
        if known.tactic.name == DEFAULT:
            return self._found(self._default(), measured)
        candidate = self._make(known.tactic)
        if candidate is None:
            assert self.plan.store is not None
            self.plan.store.drop(key)
            return self._found(self._default(), "the choice of before did not hold here")
        return self._found(candidate, measured)

    def _found(self, chosen: _Candidate, measured: str) -> _Found:
        details = {**chosen.artifact.details, "tactic_measured": measured}
        sentence = f"tactic {chosen.tactic.name!r} is taken; {measured}"
        return _Found(
            artifact=replace(chosen.artifact, details=details), parity=chosen.parity, said=(*self.said, sentence)
        )


def _tactics(conversion: Conversion, default: Artifact, plan: FastestPlan) -> tuple[Tactic, ...]:
    # FlexAttention's own kernel lives in the child that exported the program: only plain attention is on disk.
    if default.format == "aoti" and conversion.program.flex_attention:
        return ()
    listed = plan.alternatives(default.format, plan.effort, plan.device)
    if default.format == "onnx" and plan.effort == "max" and plan.tensorrt:
        listed += (tensorrt(conversion.program.spec, _precision(default)),)
    return tuple(one for one in listed if one != UNPACKED or is_packed(default.details))


class _Facts(Record):
    """What a choice depends on."""

    graph: str
    spec: str
    weights: str
    artifact: dict[str, str]
    tactics: tuple[Tactic, ...]
    target: str
    versions: dict[str, str]
    machine: str
    deployctl: tuple[str, ...]


def choice_key(checkpoint: Checkpoint, conversion: Conversion, default: Artifact, plan: FastestPlan) -> str:
    """The digest of all that a choice depends on; a model's name and its weights' values do not count."""
    program = conversion.program
    facts = _Facts(
        graph=program.digest,
        spec=program.spec.to_json(),
        weights=f"{checkpoint.parameters} {checkpoint.size} {checkpoint.dtype}",
        artifact={name: value for name, value in default.details.items() if name != "tactic"},
        tactics=_tactics(conversion, default, plan),
        target=plan.target.to_json(),
        versions=installed_versions(_TOOLS),
        machine=f"{cpu_model()}, {plan.threads} threads",
        deployctl=(__version__, *_own_sources()),
    )
    return sha256_bytes(facts.to_json().encode())


def _own_sources() -> Iterator[str]:
    """The digests of what decides here: other rules make other choices."""
    converters = Path(__file__).parents[1] / "convert"
    for path in sorted([Path(__file__), *converters.glob("*.py")]):
        yield f"{path.name} {sha256_file(path)}"
